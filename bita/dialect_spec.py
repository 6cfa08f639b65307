"""What the dialects of the step graph need, store and run on.

A dialect is the set of operators that a graph is written in. `bita.export.dialects` writes graphs;
the code that builds, compiles, runs or shows an engine reads here what it has to know of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

FLOAT_PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class DialectSpec:
    """What one dialect needs, stores and runs on."""

    name: str
    precisions: tuple[str, ...]
    backends: tuple[str, ...]  # those that run its graph as it is written
    min_onnxruntime: str  # the oldest version that was tried with it
    # The oldest TensorRT that compiles its graph, () for any; None if none does.
    min_tensorrt: tuple[int, ...] | None
    # Bytes of a quantized weight by precision, with its share of a block's scale.
    bytes_per_weight: Mapping[str, float]
    # Whether activations and caches are float32 in every precision. If not, they are float32 in
    # fp32 only, and float16 in the others.
    computes_in_float32: bool = False
    # Whether int8 products have a scale for each row of activations. If not, all 8-bit products
    # have a static scale, for which calibration has to know the range of their inputs.
    scales_rows: bool = False
    has_int8_table: bool = False  # the embedding table of quantized engines has 8 bits, else 16
    rotary_unit: int = 1  # rotary embeddings turn a multiple of this many numbers of a head
    runs_where_built: bool = False  # its trees are chosen by timing them on the building device
    # Whether each quantized precision has blocks with scales of their own everywhere, the embedding
    # table included, which a tied output layer reads too.
    has_blocks_only: bool = False
    # Whether a row has the same bits whatever rows are beside it, wherever its tokens lie in the
    # cache. Exact decoding then accepts branches too, and plain decoding has steps of one row.
    exact_trees: bool = False
    cache_type: str | None = None  # of its caches by default; None: what it computes in

    def computes_in(self, precision: str) -> str:
        """The type of activations and caches, "float32" or "float16"."""
        return "float32" if self.computes_in_float32 or precision == "fp32" else "float16"

    def cache_item_bytes(self, precision: str) -> int:
        """Bytes of a number in a cache."""
        return 4 if (self.cache_type or self.computes_in(precision)) == "float32" else 2

    def needs_ranges(self, precision: str) -> bool:
        """Whether activations are scaled by the range seen in calibration."""
        return precision in ("int8", "fp8") and not self.scales_rows

    def accepts(self, mode: str) -> str:
        """What a search of trees has to assume in a mode: that all nodes may be accepted ("tree"),
        or those of the spine alone ("exact").
        """
        return "tree" if self.exact_trees else mode

    def needs_smoothing(self, precision: str) -> bool:
        """Whether rows have one scale for all of their inputs, of which none may be too large."""
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
    rotary_unit=16,  # of GroupQueryAttention
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
    min_tensorrt=(10, 15),  # reads RotaryEmbedding, RMSNormalization, TensorScatter, Attention
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
# Dialects whose graphs TensorRT and TensorRT-RTX compile, the newest first.
PLAN_DIALECTS = tuple(name for name, spec in DIALECTS.items() if spec.min_tensorrt is not None)
# Backends that run a graph as it is written; the others of `bita.plan.BACKENDS` run a plan of it.
GRAPH_BACKENDS = tuple(dict.fromkeys(b for spec in DIALECTS.values() for b in spec.backends))


def dialects_on(backend: str) -> tuple[str, ...]:
    """The dialects that a backend runs as they are written, its default first."""
    return tuple(name for name, spec in DIALECTS.items() if backend in spec.backends)
