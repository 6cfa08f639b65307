"""What the manifest says of a compiled plan: for whom it was built, and for which steps."""

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
MAX_ROWS = 1 << 16  # of a step; far more than pay off, and few enough to allocate buffers for
FIX = "compile it again: bita compile ENGINE"


@dataclass(frozen=True)
class PlanInfo:
    """library: Python module, one of NAMES, of this version exactly.

    targets: GPU generations, "sm87" and so on. decode_rows: Q of each decode profile, ascending.
    prefill_rows, prefill_outputs: most rows of another step, and most of them that give tokens.
    """

    library: str
    version: str
    targets: tuple[str, ...]
    decode_rows: tuple[int, ...]
    prefill_rows: int
    prefill_outputs: int

    @property
    def name(self) -> str:
        """Of library and version, for people."""
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
        """Raises EngineError that lists every value that no plan has."""
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
    """Why an engine of this backend cannot have this plan ({} for none); empty if it can."""
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
    """Values as they were before `to_manifest` made texts of them; others stay as they are."""
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
