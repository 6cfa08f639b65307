"""Properties of the dialects of the step graph: what they need, store and run on.

A dialect is the set of operators that a graph is written in. `bita.export.dialects` writes the
graphs; code that builds, compiles, runs or shows an engine looks up their properties here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

FLOAT_PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class DialectSpec:
    """Properties of one dialect."""

    name: str
    precisions: tuple[str, ...]
    backends: tuple[str, ...]  # backends that run the graph as written, without compiling it
    min_onnxruntime: str  # oldest version that was tried
    # Oldest TensorRT that compiles the graph: () if any does, None if none does.
    min_tensorrt: tuple[int, ...] | None
    # Bytes of a quantized weight by precision, including its share of the block's scale.
    bytes_per_weight: Mapping[str, float]
    # Whether activations and caches are float32 in every precision. Otherwise they are float32 in
    # fp32 and float16 in all other precisions.
    computes_in_float32: bool = False
    # Whether int8 products have a scale for each row of activations. Otherwise all 8-bit products
    # have a static scale, and calibration must measure the range of their inputs.
    scales_rows: bool = False
    has_int8_table: bool = False  # quantized engines store the embedding table in 8 bits, not 16
    rotary_unit: int = 1  # rotary embeddings rotate a multiple of this many numbers of a head
    runs_where_built: bool = False  # its trees are chosen by timing them on the building device
    # Whether every quantized tensor consists of blocks with their own scales, including the
    # embedding table, which a tied output layer also reads.
    has_blocks_only: bool = False
    # Whether a row's result is bit-identical whatever other rows the step has, and wherever its
    # tokens are in the cache. Exact decoding then accepts branches too, and plain decoding runs
    # steps of one row.
    exact_trees: bool = False
    cache_type: str | None = None  # default type of the caches; None: the type of activations

    def computes_in(self, precision: str) -> str:
        """Return the type of activations and caches, "float32" or "float16"."""
        return "float32" if self.computes_in_float32 or precision == "fp32" else "float16"

    def cache_item_bytes(self, precision: str) -> int:
        """Return the bytes of one number in a cache."""
        return 4 if (self.cache_type or self.computes_in(precision)) == "float32" else 2

    def needs_ranges(self, precision: str) -> bool:
        """Return whether activations are scaled by a range measured in calibration."""
        return precision in ("int8", "fp8") and not self.scales_rows

    def accepts(self, mode: str) -> str:
        """Return which nodes a tree search may assume to be acceptable in `mode`.

        "tree" stands for all nodes, "exact" for the nodes of the spine only.
        """
        return "tree" if self.exact_trees else mode

    def needs_smoothing(self, precision: str) -> bool:
        """Return whether a row's inputs share one scale, so that outliers must be smoothed."""
        return precision == "int8" and self.scales_rows and not self.has_blocks_only


_EXPLICIT_BYTES = {"int8": 1.0, "fp8": 1.0, "int4": 1 / 2 + 2 / 64}
ORT = DialectSpec(
    "ort",
    precisions=("fp32", "fp16", "int8", "int4"),
    backends=("ort-cpu",),
    min_onnxruntime="1.23",
    min_tensorrt=None,
    bytes_per_weight={"int8": 1.0, "int4": 1 / 2 + 4 / 32},
    computes_in_float32=True,
    scales_rows=True,
    has_int8_table=True,
    rotary_unit=16,  # required by GroupQueryAttention
    runs_where_built=True,
)
NATIVE = DialectSpec(
    "native",
    precisions=("int8", "int4"),
    backends=("ort-cpu",),
    min_onnxruntime="1.23",
    min_tensorrt=None,
    bytes_per_weight={"int8": 1 + 2 / 32, "int4": 1 / 2 + 4 / 32},
    computes_in_float32=True,
    scales_rows=True,
    has_int8_table=True,
    runs_where_built=True,
    has_blocks_only=True,
    exact_trees=True,
    cache_type="float16",
)
STANDARD = DialectSpec(
    "standard",
    precisions=("fp32", "fp16", "int8", "int4", "fp8"),
    backends=("ort-cpu",),
    min_onnxruntime="1.25",
    min_tensorrt=(10, 15),  # for RotaryEmbedding, RMSNormalization, TensorScatter and Attention
    bytes_per_weight=_EXPLICIT_BYTES,
)
PLAIN = DialectSpec(
    "plain",
    precisions=STANDARD.precisions,
    backends=("ort-cpu",),
    min_onnxruntime="1.23",
    min_tensorrt=(),
    bytes_per_weight=_EXPLICIT_BYTES,
)
CUDA = DialectSpec(
    "cuda",
    precisions=STANDARD.precisions,
    backends=("ort-cuda",),
    min_onnxruntime="1.25",
    min_tensorrt=None,
    bytes_per_weight={**_EXPLICIT_BYTES, "int4": 1 / 2 + 2 / 32},
)
DIALECTS = {spec.name: spec for spec in (ORT, NATIVE, STANDARD, PLAIN, CUDA)}
# Dialects whose graphs TensorRT and TensorRT-RTX compile, newest first.
PLAN_DIALECTS = tuple(name for name, spec in DIALECTS.items() if spec.min_tensorrt is not None)
# Backends that run a graph as written; the others in `bita.plan.BACKENDS` run a compiled plan.
GRAPH_BACKENDS = tuple(dict.fromkeys(b for spec in DIALECTS.values() for b in spec.backends))


def dialects_on(backend: str) -> tuple[str, ...]:
    """Return the dialects that a backend runs as written, its default first."""
    return tuple(name for name, spec in DIALECTS.items() if backend in spec.backends)
