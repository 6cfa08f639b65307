"""The manifest's description of a compiled plan: its library, GPUs and step sizes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bita.dialect_spec import GRAPH_BACKENDS
from bita.errors import EngineError
from bita.json_values import Fields, shown

RTX = "tensorrt_rtx"
LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": RTX}  # backend: Python module
BACKENDS = (*GRAPH_BACKENDS, *LIBRARIES)
NAMES = {"tensorrt": "TensorRT", RTX: "TensorRT-RTX"}
INSTALL = {
    "tensorrt": "on Jetson: apt install python3-libnvinfer, and a virtual environment with "
    "--system-site-packages; elsewhere: pip install tensorrt",
    RTX: "pip install tensorrt-rtx-cu13",
}
MAX_ROWS = 1 << 16  # per step: far more than pays off, and few enough to allocate buffers for
FIX = "compile it again: bita compile ENGINE"


@dataclass(frozen=True)
class PlanInfo:
    """Description of a plan."""

    library: str  # Python module, one of NAMES
    version: str  # exact version of the library
    targets: tuple[str, ...]  # GPU generations, such as "sm87"
    decode_rows: tuple[int, ...]  # Q of each decode profile, ascending
    prefill_rows: int  # maximum rows of any other step
    prefill_outputs: int  # maximum rows of it that return tokens

    @property
    def name(self) -> str:
        """Library and version, for messages."""
        return f"{NAMES[self.library]} {self.version}"

    def to_manifest(self) -> dict[str, str]:
        return {
            "library": self.library,
            "version": self.version,
            "targets": ",".join(self.targets),
            "decode_rows": ",".join(map(str, self.decode_rows)),
            "prefill_rows": str(self.prefill_rows),
            "prefill_outputs": str(self.prefill_outputs),
        }

    @classmethod
    def from_manifest(cls, data: Mapping[str, str]) -> "PlanInfo":
        """Read what `to_manifest` writes. Raises EngineError that lists every invalid value."""
        values = Fields(_with_numbers(data), "plan.")
        info = cls(
            values.text("library"),
            values.text("version"),
            values.texts("targets"),
            values.wholes("decode_rows", least=1, most=MAX_ROWS),
            values.whole("prefill_rows", least=1, most=MAX_ROWS),
            values.whole("prefill_outputs", least=1, most=MAX_ROWS),
        )
        rows = list(info.decode_rows)
        if rows != sorted(set(rows)):
            values.faults.append(f"plan.decode_rows is {shown(rows)}, not ascending")
        if "library" in data and info.library not in NAMES:
            known = " and ".join(NAMES)
            values.faults.append(f"plan.library is {shown(info.library)}; {known} are known")
        values.check(EngineError, f"the manifest's plan ({FIX})")
        return info


def plan_faults(backend: str, plan: Mapping[str, str]) -> list[str]:
    """Return why an engine of this backend cannot have this plan; empty if it can.

    An engine without a plan has {}.
    """
    library = LIBRARIES.get(backend)
    if not library:
        return [f"plan is for {', '.join(LIBRARIES)}, not for {backend}"] if plan else []
    try:
        info = PlanInfo.from_manifest(plan)
    except EngineError as error:
        return [str(error)]
    if info.library != library:
        return [f"plan.library is {info.library}; that of backend {backend} is {library}; {FIX}"]
    return []


def _with_numbers(data: Mapping[str, str]) -> dict[str, Any]:
    """Undo the conversion of values to texts by `to_manifest`; other values are unchanged."""
    found: dict[str, Any] = dict(data)
    for name in ("prefill_rows", "prefill_outputs"):
        if name in found:
            found[name] = _number(found[name])
    for name, read in (("decode_rows", _number), ("targets", str)):
        if name in found:
            found[name] = [read(item) for item in found[name].split(",")]
    return found


def _number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else text
