"""Decoder parts as ONNX Runtime's own operators (opset 23 + com.microsoft).

Attention is GroupQueryAttention on preallocated caches. Facts behind the choices:
`total_sequence_length` is always the capacity, since the operator reads only position_ids[0] when
it equals the number of rows; past and present are bound to the same memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bita.export.architecture import Architecture, Layer
from bita.export.checkpoint import Checkpoint
from bita.export.gptq import ErrorSpread, Moments, quantize_int4_for
from bita.export.graph import FLOAT, FLOAT16, INT32, MICROSOFT, UINT8, GraphWriter
from bita.export.int8_linear import Int8Linear, smoothing
from bita.export.quantize import BLOCK_SIZE, quantize_int4
from bita.export.rope import Rope
from bita.export.visibility import StepInputs, Visibility
from bita.tensors import Float32Array, row_chunks

OPSETS = {"": 23, MICROSOFT: 1}
PRECISIONS = ("fp32", "fp16", "int8", "int4")
INT8_ACTIVATIONS = 4  # MatMulNBits accuracy_level: 3x the speed of float activations on AVX2


class OrtDialect:
    """Writes the parts of a decoder; weights come from the checkpoint as they are needed.

    precision: "fp32"; "fp16", which stores weights so and computes in float32 (x86 has no kernels
    for more); "int8" for linear layers with a scale a row (`Int8Linear`, whose `signed` is
    signed_int8); "int4" for MatMulNBits blocks with 8-bit activations. What `moments` has of the
    inputs, [K] for int8 and [K, K] for int4, decides how layers are smoothed or rounded. The input
    and the product of each linear layer are named LABEL.input and LABEL.output.
    """

    def __init__(
        self,
        graph: GraphWriter,
        checkpoint: Checkpoint,
        architecture: Architecture,
        capacity: int,
        precision: str,
        moments: Moments | None = None,
        signed_int8: bool = False,
    ) -> None:
        self.graph = graph
        self._int8 = Int8Linear(graph, signed_int8)
        self._moments = moments or {}
        self._checkpoint = checkpoint
        self._architecture = architecture
        self._capacity = capacity
        self._precision = precision
        self._rope_tables: dict[Rope, tuple[ir.Value, ir.Value]] = {}
        self._tables: dict[str, ir.Value] = {}

    def table(self, name: str) -> ir.Value:
        """A weight in its own layout; written once however often it is used.

        In float32 where that is the precision, else in float16 for its size.
        """
        if name not in self._tables:
            shape, pieces = self._checkpoint.shape(name), row_chunks(self._checkpoint, name)
            if self._precision == "fp32":
                self._tables[name] = self.graph.weight(name, FLOAT, shape, pieces)
            else:
                halves = (rows.astype(np.float16) for rows in pieces)
                self._tables[name] = self.graph.weight(name, FLOAT16, shape, halves)
        return self._tables[name]

    def embed(self, name: str, token_ids: ir.Value) -> ir.Value:
        """Rows of the embedding table, as float32."""
        return self._as_float(self.graph.op("Gather", self.table(name), token_ids))

    def _as_float(self, value: ir.Value) -> ir.Value:
        return value if self._precision == "fp32" else self.graph.op("Cast", value, to=FLOAT)

    def norm_weight(self, name: str, scale: float = 1.0) -> ir.Value:
        """A norm's weight with its offset and a following constant factor folded in."""
        weight = (self._checkpoint.read(name) + self._architecture.norm_offset) * scale
        return self.graph.weight(name, FLOAT, weight.shape, [weight.astype(np.float32)])

    def norm(self, hidden: ir.Value, weight: ir.Value) -> ir.Value:
        """RMSNorm over the last axis."""
        return self.graph.op(
            "RMSNormalization",
            hidden,
            weight,
            axis=-1,
            epsilon=self._architecture.norm_eps,
        )

    def add_norm(
        self, residual: ir.Value, delta: ir.Value, weight: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """norm(residual + delta) and residual + delta, in one operator."""
        normed, total = ir.Value(), ir.Value()
        self.graph.op_into(
            "SkipSimplifiedLayerNormalization",
            (residual, delta, weight),
            (normed, None, None, total),
            domain=MICROSOFT,
            epsilon=self._architecture.norm_eps,
        )
        return normed, total

    def linear(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        """hidden times the weights of `names` ([out, in] each), their outputs side by side."""
        hidden.name = f"{label}.input"
        if self._precision == "int4":
            product = self._block_linear(hidden, label, names)
        elif self._precision == "int8":
            product = self._int8_linear(hidden, 3, label, names)
        else:
            product = self.graph.op("MatMul", hidden, self._transposed(label, names))
        product.name = f"{label}.output"
        bias = self._bias(label, names)
        return product if bias is None else self.graph.op("Add", product, bias)

    def head(self, rows: ir.Value, name: str) -> ir.Value:
        """Logits [R, V] of rows [R, hidden]; in floats a tied embedding table serves."""
        rows.name = "lm_head.input"
        if self._precision == "int4":
            return self._block_linear(rows, "lm_head", [name])
        if self._precision == "int8":
            return self._int8_linear(rows, 2, "lm_head", [name])
        return self.graph.op("Gemm", rows, self._as_float(self.table(name)), transB=1)

    def activation(self, gate: ir.Value) -> ir.Value:
        if self._architecture.activation == "silu":
            return self.graph.op("QuickGelu", gate, domain=MICROSOFT, alpha=1.0)
        return self.graph.op("Gelu", gate, approximate="tanh")

    def attention(self, qkv: ir.Value, index: int, layer: Layer, step: "StepContext") -> ir.Value:
        """Attention over the cache and the step's rows [1, Q, heads * D]; appends K and V."""
        arch = self._architecture
        shape = (1, arch.num_kv_heads, self._capacity, arch.head_dim)
        past = [self.graph.input(f"past.{index}.{side}", FLOAT, shape) for side in ("key", "value")]
        query, key, value = self._heads(qkv, index)
        cos, sin = self._tables_of(layer.rope) if layer.rope else (None, None)
        attended, *present = self.graph.ops(
            "GroupQueryAttention",
            *(query, key, value, *past, step.last_slot, step.capacity, cos, sin),
            *(step.inputs.positions if layer.rope else None, step.visibility.bias(layer.window)),
            num_outputs=3,
            domain=MICROSOFT,
            num_heads=arch.num_heads,
            kv_num_heads=arch.num_kv_heads,
            scale=arch.attention_scale,
            softcap=arch.attention_softcap,
            do_rotary=int(layer.rope is not None),
        )
        for side, cache in zip(("key", "value"), present, strict=True):
            self.graph.output(f"present.{index}.{side}", cache, FLOAT, shape)
        return attended

    def _heads(
        self, qkv: ir.Value, index: int
    ) -> tuple[ir.Value, ir.Value | None, ir.Value | None]:
        """Packed QKV as it is, or Q, K, V apart where Q and K have norms of their own."""
        arch = self._architecture
        if not arch.qk_norm:
            return qkv, None, None
        query_width, kv_width = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
        sizes = self.graph.constant([query_width, kv_width, kv_width])
        query, key, value = self.graph.ops("Split", qkv, sizes, num_outputs=3, axis=-1)
        prefix = f"model.layers.{index}.self_attn"
        query = self._head_norm(query, f"{prefix}.q_norm.weight", arch.num_heads)
        key = self._head_norm(key, f"{prefix}.k_norm.weight", arch.num_kv_heads)
        return query, key, value

    def _head_norm(self, hidden: ir.Value, name: str, num_heads: int) -> ir.Value:
        head_dim = self._architecture.head_dim
        split = self.graph.constant([0, 0, num_heads, head_dim])
        merged = self.graph.constant([0, 0, num_heads * head_dim])
        heads = self.graph.op("Reshape", hidden, split)
        return self.graph.op("Reshape", self.norm(heads, self.norm_weight(name)), merged)

    def _tables_of(self, rope: Rope) -> tuple[ir.Value, ir.Value]:
        if rope not in self._rope_tables:
            number = len(self._rope_tables)
            cos, sin = rope.tables(self._capacity)
            self._rope_tables[rope] = (
                self.graph.weight(f"rope.{number}.cos", FLOAT, cos.shape, [cos]),
                self.graph.weight(f"rope.{number}.sin", FLOAT, sin.shape, [sin]),
            )
        return self._rope_tables[rope]

    def _transposed(self, label: str, names: Sequence[str]) -> ir.Value:
        """MatMul's second operand [in, out]."""
        matrix = np.empty(self._size(names), np.float32)
        start = 0
        for chunk in self._chunks(names):
            matrix[:, start : start + len(chunk)] = chunk.T
            start += len(chunk)
        if self._precision == "fp32":
            return self.graph.weight(f"{label}.weight", FLOAT, matrix.shape, [matrix])
        halves = matrix.astype(np.float16)
        return self._as_float(self.graph.weight(f"{label}.weight", FLOAT16, halves.shape, [halves]))

    def _int8_linear(
        self, hidden: ir.Value, num_axes: int, label: str, names: Sequence[str]
    ) -> ir.Value:
        factors = None
        if label in self._moments:
            factors = smoothing(self._moments[label], self._chunks(names))
        size, chunks = self._size(names), self._chunks(names)
        return self._int8.product(hidden, num_axes, label, size, chunks, factors)

    def _block_linear(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        num_in, num_out = self._size(names)
        num_blocks = -(-num_in // BLOCK_SIZE)
        scales: list[Float32Array] = []
        packed = self.graph.weight(
            f"{label}.weight_int4",
            UINT8,
            (num_out, num_blocks, BLOCK_SIZE // 2),
            self._quantized(label, names, scales),
        )
        all_scales = np.concatenate(scales).reshape(-1)
        return self.graph.op(
            "MatMulNBits",
            hidden,
            packed,
            self.graph.weight(f"{label}.scales", FLOAT, all_scales.shape, [all_scales]),
            domain=MICROSOFT,
            K=num_in,
            N=num_out,
            bits=4,
            block_size=BLOCK_SIZE,
            accuracy_level=INT8_ACTIVATIONS,
        )

    def _quantized(
        self, label: str, names: Sequence[str], scales: list[Float32Array]
    ) -> Iterator[np.ndarray]:
        """Packed pieces; their scales are appended to `scales`."""
        spread = None
        if label in self._moments:
            spread = ErrorSpread.of(self._moments[label])
        for chunk in self._chunks(names):
            if spread is not None:
                packed, chunk_scales = quantize_int4_for(chunk, spread)
            else:
                packed, chunk_scales = quantize_int4(chunk)
            scales.append(chunk_scales)
            yield packed

    def _size(self, names: Sequence[str]) -> tuple[int, int]:
        """Inputs and outputs of linear layers side by side."""
        shapes = [self._checkpoint.shape(name) for name in names]
        return shapes[0][1], sum(shape[0] for shape in shapes)

    def _chunks(self, names: Sequence[str]) -> Iterator[Float32Array]:
        for name in names:
            yield from row_chunks(self._checkpoint, name)

    def _bias(self, label: str, names: Sequence[str]) -> ir.Value | None:
        biases = [name.removesuffix("weight") + "bias" for name in names]
        present = self._checkpoint.names()
        if not any(bias in present for bias in biases):
            return None
        parts = [
            self._checkpoint.read(bias)
            if bias in present
            else np.zeros(self._checkpoint.shape(name)[0], np.float32)
            for name, bias in zip(names, biases, strict=True)
        ]
        bias = np.concatenate(parts)
        return self.graph.weight(f"{label}.bias", FLOAT, bias.shape, [bias])


@dataclass(frozen=True)
class StepContext:
    """What every attention of a step shares.

    last_slot: GroupQueryAttention's seqlens_k, the cache slot of the step's last row, int32 [1].
    capacity: its total_sequence_length, int32 scalar.
    """

    inputs: StepInputs
    visibility: Visibility
    last_slot: ir.Value
    capacity: ir.Value


def step_context(graph: GraphWriter, inputs: StepInputs, capacity: int) -> StepContext:
    """Compute it once for all layers."""
    num_rows = graph.op("Shape", inputs.sees_prefix)
    end = graph.op("Add", inputs.cache_length, num_rows)
    last = graph.op("Sub", end, graph.constant([1]))
    return StepContext(
        inputs=inputs,
        visibility=Visibility(graph, inputs, capacity),
        last_slot=graph.op("Cast", last, to=INT32),
        capacity=graph.constant(capacity, np.int32),
    )
