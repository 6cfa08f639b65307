"""What the manifest says of a compiled plan: for whom it was built, and for which steps."""

from collections.abc import Mapping
from dataclasses import dataclass

from bita.dialect_spec import GRAPH_BACKENDS
from bita.errors import EngineError

RTX = "tensorrt_rtx"
LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": RTX}  # backend: Python module
BACKENDS = (*GRAPH_BACKENDS, *LIBRARIES)
NAMES = {"tensorrt": "TensorRT", RTX: "TensorRT-RTX"}
INSTALL = {
    "tensorrt": "on Jetson: apt install python3-libnvinfer, and a virtual environment with "
    "--system-site-packages; elsewhere: pip install tensorrt",
    RTX: "pip install tensorrt-rtx-cu13",
}
FORM = "library, version, targets, decode_rows, prefill_rows, prefill_outputs"


@dataclass(frozen=True)
class PlanInfo:
    """library: Python module, of this version exactly. targets: GPU generations, "sm87" and so on.

    decode_rows: Q of each decode profile, ascending. prefill_rows, prefill_outputs: most rows of
    another step, and most of them that give tokens.
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
        return f"{NAMES.get(self.library, self.library)} {self.version}"

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
        """Raises EngineError if something is missing or no number."""
        try:
            rows = tuple(int(count) for count in data["decode_rows"].split(","))
            info = cls(
                data["library"],
                data["version"],
                tuple(data["targets"].split(",")),
                rows,
                int(data["prefill_rows"]),
                int(data["prefill_outputs"]),
            )
        except (KeyError, ValueError) as error:
            raise EngineError(
                f"the manifest's plan is {dict(data)}, not {FORM} ({error}); compile it again: "
                "bita compile ENGINE"
            ) from error
        if list(rows) != sorted(set(rows)) or rows[0] < 1:
            raise EngineError(f"the manifest's plan has decode_rows {list(rows)}, not ascending")
        return info
