"""The manifest of an engine: its description, and the size and sha256 of every other file.

Compatibility: `format_version` increases when an older runtime could not run the directory. It is 2
or 3 for engines that runtimes of that format can run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bita.dialect_spec import DIALECTS, NATIVE, ORT, PLAN_DIALECTS
from bita.engine_files import sha256
from bita.errors import EngineError
from bita.json_values import Fields, read_json_object, shown
from bita.plan import BACKENDS, LIBRARIES

FORMAT, FORMAT_VERSIONS = "bita-engine", (2, 3, 4)
MANIFEST_FILE = "manifest.json"
MODES = ("exact", "tree")
MAX_MANIFEST_BYTES = 4 << 20  # a manifest has 2 kB
MAX_TEXT = 1 << 16  # characters; the longest text describes what an adapter was tuned on
MAX_SIZE = 10**9  # for a dimension, far beyond any model
TEXTS = ("model", "family", "tuned_on", "created_by")
CHOICES = {
    "backend": BACKENDS,
    "precision": tuple(dict.fromkeys(p for spec in DIALECTS.values() for p in spec.precisions)),
    "mode": MODES,
}
SIZES = (
    *("num_layers", "num_kv_heads", "head_dim", "hidden_size", "vocab_size"),
    *("capacity", "num_ranks", "num_masks"),
)
SIZES_OR_ZERO = ("prefix_length", "lora_rank", "pair_rank")


@dataclass(frozen=True)
class Manifest:
    """Description of an engine; letters are those of the documentation of the step graph.

    Mode "exact" is bit-identical to AR: only spine nodes are accepted, or all nodes in dialects
    with exact trees. Mode "tree" accepts all nodes, and is equal up to the rounding of float32.
    """

    model: str  # as the user named it
    family: str  # model_type of transformers
    license: str | None  # SPDX id of the base model
    backend: str  # "ort-cpu", "ort-cuda", "tensorrt" or "tensorrt-rtx"
    precision: str  # "fp32", "fp16", "int8", "int4", "fp8"
    mode: str  # "exact" or "tree"
    num_layers: int  # L
    num_kv_heads: int  # H
    head_dim: int  # D
    hidden_size: int
    vocab_size: int  # V
    capacity: int  # C: cache slots for prefix, text and the rows of a step
    num_ranks: int  # k: ids returned per row
    num_masks: int  # M
    prefix_length: int  # P
    lora_rank: int  # r; 0: the graph has no LoRA, otherwise it accepts any rank
    pair_rank: int  # rank of the adapter's pair scores, tabulated in PAIRS_FILE; 0 for none
    tuned_on: str  # the adapter's data; "untuned" for none
    requires: dict[str, str]  # minimum version by package; "processor": required features
    created_by: str
    dialect: str = "ort"  # dialect of the graph's operators
    plan: dict[str, str] = field(default_factory=dict)  # `bita.plan.PlanInfo`; empty for no plan
    inputs: str = ""  # digest of the build's inputs, for `bita engine --if-needed`

    @property
    def cache_shape(self) -> tuple[int, int, int, int]:
        """Shape [2L, H, C, D] of the cache of keys and values."""
        return 2 * self.num_layers, self.num_kv_heads, self.capacity, self.head_dim

    @property
    def is_tuned(self) -> bool:
        """Whether the masks were tuned."""
        return self.tuned_on != "untuned"

    @property
    def format_version(self) -> int:
        """Oldest format whose runtimes can run the engine."""
        if self.dialect == NATIVE.name:
            return 4
        return 2 if (self.backend, self.dialect) == ("ort-cpu", "ort") else 3

    def describe_files(
        self, directory: Path, known: Mapping[str, dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Return the manifest with size and sha256 of every file in `directory`.

        Files with an entry in `known` are not hashed again.
        """
        files = sorted(path for path in directory.iterdir() if path.name != MANIFEST_FILE)
        entries = {
            path.name: (known or {}).get(path.name)
            or {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in files
        }
        head = {"format": FORMAT, "format_version": self.format_version}
        return {**head, **asdict(self), "files": entries}


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read the object in an engine's manifest. Raises EngineError if there is none."""
    path = directory / MANIFEST_FILE
    if not directory.is_dir():
        raise EngineError(f"{directory} is not a directory; build one: make engine MODEL=...")
    if not path.exists():
        raise EngineError(
            f"{directory} has no {MANIFEST_FILE}; build an engine: make engine MODEL=..."
        )
    return read_json_object(path, EngineError, "rebuild the engine", MAX_MANIFEST_BYTES)


def format_faults(data: Mapping[str, Any]) -> list[str]:
    """Return why this version of bita-edge cannot read the manifest at all; empty if it can."""
    if data.get("format") != FORMAT:
        return [f"format is {shown(data.get('format'))}, not {FORMAT!r}: not a bita-edge engine"]
    if data.get("format_version") not in FORMAT_VERSIONS:
        known = ", ".join(map(str, FORMAT_VERSIONS))
        return [
            f"format version {shown(data.get('format_version'))}; this bita-edge reads "
            f"{known}: rebuild the engine with it"
        ]
    return []


def parse_manifest(data: Mapping[str, Any]) -> tuple[Manifest | None, list[str]]:
    """Return the manifest in an object, or None and what is wrong with the object's values."""
    values = Fields(data, f"{MANIFEST_FILE}: ")
    found: dict[str, Any] = {
        **{name: _text(values, name) for name in TEXTS},
        **{name: _choice(values, name, known) for name, known in CHOICES.items()},
        **{name: values.whole(name, least=1, most=MAX_SIZE) for name in SIZES},
        **{name: values.whole(name, most=MAX_SIZE) for name in SIZES_OR_ZERO},
        "license": None if data.get("license", "") is None else _text(values, "license"),
        "dialect": _choice(values, "dialect", tuple(DIALECTS), ORT.name),
        "requires": _text_table(values, "requires"),
        "plan": _text_table(values, "plan", {}),
        "inputs": _text(values, "inputs", ""),
    }
    manifest = Manifest(**found)
    faults = values.faults or [f"{MANIFEST_FILE}: {fault}" for fault in _misfits(manifest)]
    return (None if faults else manifest), faults


def _misfits(manifest: Manifest) -> Iterator[str]:
    """Yield conflicts between values that are valid on their own."""
    spec = DIALECTS[manifest.dialect]
    if manifest.precision not in spec.precisions:
        yield f"dialect {spec.name} has no precision {manifest.precision}"
    compiles = manifest.backend in LIBRARIES and spec.name in PLAN_DIALECTS
    if manifest.backend not in spec.backends and not compiles:
        yield f"backend {manifest.backend} does not run dialect {spec.name}"
    if manifest.prefix_length >= manifest.capacity:
        yield (
            f"prefix_length {manifest.prefix_length} leaves no room in capacity {manifest.capacity}"
        )


def _text(values: Fields, name: str, *default: str) -> str:
    text = values.text(name, *default)
    if len(text) > MAX_TEXT:
        values.faults.append(
            f"{values.prefix}{name} has {len(text)} characters; at most {MAX_TEXT} are allowed"
        )
    return text


def _choice(values: Fields, name: str, known: Sequence[str], *default: str) -> str:
    text = values.text(name, *default)
    if isinstance(values.values.get(name), str) and text not in known:
        values.faults.append(
            f"{values.prefix}{name} {shown(text)} is not one of {', '.join(known)}"
        )
    return text


def _text_table(values: Fields, name: str, *default: dict[str, str]) -> dict[str, str]:
    table = values.table(name, *default)
    if not all(isinstance(text, str) and len(text) <= MAX_TEXT for text in table.values()):
        values.faults.append(f"{values.prefix}{name} is {shown(table)}, not names with texts")
    return table
