"""Decoder parts as ONNX Runtime's own operators (opset 23 + com.microsoft).

Attention is GroupQueryAttention on preallocated caches; past and present are bound to the same
memory. `total_sequence_length` is always the capacity, since the operator reads only
position_ids[0] when it equals the number of rows.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bita.dialect_spec import FLOAT_PRECISIONS
from bita.engine import MIN_SLOTS
from bita.export.architecture import Architecture, Layer
from bita.export.dialects.graph_options import GraphOptions
from bita.export.dialects.linear import HEAD_LABEL, Linear
from bita.export.onnx.decoder_weights import DecoderWeights
from bita.export.onnx.visibility import StepInputs, Visibility
from bita.export.onnx.writer import FLOAT, INT32, MICROSOFT, GraphWriter

OPSETS = {"": 23, MICROSOFT: 1}
MIN_ATTENDING = 2  # minimum number of rows of attention; a smaller step is padded


class OrtDialect:
    """Writes the parts of a decoder; weights are read from the checkpoint when they are needed.

    It computes in float32 for every precision, since x86 has no kernels for smaller float types.
    """

    def __init__(
        self,
        graph: GraphWriter,
        weights: DecoderWeights,
        linear: Linear,
        architecture: Architecture,
        options: GraphOptions,
    ) -> None:
        self.graph = graph
        self.weights = weights
        self._linear = linear
        self._architecture = architecture
        self._capacity = options.capacity
        self._is_quantized = options.precision not in FLOAT_PRECISIONS

    def place(self, inputs: StepInputs) -> None:
        self._step = StepContext(self.graph, inputs, self._capacity)
        self.graph.metadata[MIN_SLOTS] = str(MIN_ATTENDING)

    def embed(self, name: str, token_ids: ir.Value) -> ir.Value:
        """Gather rows of the table, which has 8 bits if the linear layers are quantized.

        This halves its size on disk and in resident memory.
        """
        graph = self.graph
        if not self._is_quantized:
            return self.weights.as_compute(graph.op("Gather", self.weights.table(name), token_ids))
        values, scales = self.weights.int8_table(name)
        rows = graph.op("Cast", graph.op("Gather", values, token_ids), to=FLOAT)
        return graph.op("Mul", rows, graph.op("Gather", scales, token_ids))

    def norm(self, hidden: ir.Value, weight: ir.Value) -> ir.Value:
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
        """Write sum and norm as one operator."""
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
        hidden.name = f"{label}.input"
        product = self._linear.product(hidden, label, names)
        product.name = f"{label}.output"
        bias = self.weights.bias(label, names)
        return product if bias is None else self.graph.op("Add", product, bias)

    def as_residual(self, delta: ir.Value) -> ir.Value:
        return delta

    def add_lora(
        self,
        product: ir.Value,
        hidden: ir.Value,
        down: ir.Value,
        up: ir.Value,
        first: ir.Value,
        is_attended: bool,
    ) -> ir.Value:
        """Add LoRA to a slice of the rows, so that the other rows cost nothing.

        Attended sums need no check: no sum of values from `Adapter.bounded` exceeds float32.
        """
        graph = self.graph
        thin = graph.op("MatMul", graph.op("MatMul", self._rows_from(hidden, first), down), up)
        start, axis = graph.constant([0]), graph.constant([1])
        nodes = graph.op("Slice", product, start, first, axis)
        masks = graph.op("Add", self._rows_from(product, first), thin)
        return graph.op("Concat", nodes, masks, axis=1)

    def _rows_from(self, value: ir.Value, first: ir.Value) -> ir.Value:
        end, axis = self.graph.constant([np.iinfo(np.int64).max]), self.graph.constant([1])
        return self.graph.op("Slice", value, first, end, axis)

    def head(self, rows: ir.Value, name: str) -> ir.Value:
        rows.name = f"{HEAD_LABEL}.input"
        return self._linear.product(rows, HEAD_LABEL, [name])

    def activation(self, gate: ir.Value) -> ir.Value:
        if self._architecture.activation == "silu":
            return self.graph.op("QuickGelu", gate, domain=MICROSOFT, alpha=1.0)
        return self.graph.op("Gelu", gate, approximate="tanh")

    def attention(self, qkv: ir.Value, index: int, layer: Layer) -> ir.Value:
        arch, step = self._architecture, self._step
        shape = (1, arch.num_kv_heads, self._capacity, arch.head_dim)
        past = [self.graph.input(f"past.{index}.{side}", FLOAT, shape) for side in ("key", "value")]
        width = (arch.num_heads + 2 * arch.num_kv_heads) * arch.head_dim
        qkv = self.graph.op("Concat", qkv, step.extra_rows(width), axis=1)
        query, key, value = self._heads(qkv, index)
        cos, sin = self.weights.rope(layer.rope, self._capacity) if layer.rope else (None, None)
        attended, *present = self.graph.ops(
            "GroupQueryAttention",
            *(query, key, value, *past, step.last_slot, step.capacity, cos, sin),
            *(step.positions if layer.rope else None, step.bias(layer.window)),
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
        zero, rows = self.graph.constant([0]), self.graph.constant([1])
        return self.graph.op("Slice", attended, zero, step.num_rows, rows)

    def _heads(
        self, qkv: ir.Value, index: int
    ) -> tuple[ir.Value, ir.Value | None, ir.Value | None]:
        """Return packed QKV unchanged, or separate Q, K and V if Q and K have norms."""
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
        return self.graph.op("Reshape", self.norm(heads, self.weights.norm(name)), merged)


class StepContext:
    """The values that all attention layers of a step share.

    Attention has two rows if a step has one, since its kernels for a single row sum in another
    order. If linear layers give a row the same bits for any number of rows, AR then has the same
    bits as larger steps.

    Attributes:
        num_rows: Q, int64 [1].
        positions: [1, rows], including the padding.
        last_slot: The cache slot of the last row, int32 [1], which is seqlens_k of
            GroupQueryAttention.
        capacity: total_sequence_length of GroupQueryAttention, an int32 scalar.
    """

    def __init__(self, graph: GraphWriter, inputs: StepInputs, capacity: int) -> None:
        self._graph = graph
        self._visibility = Visibility(graph, inputs, capacity)
        self._biases: dict[int | None, ir.Value] = {}
        self._zeros: dict[int, ir.Value] = {}
        zero = graph.constant([0])
        self.num_rows = graph.op("Shape", inputs.sees_prefix)
        rows = graph.op("Max", self.num_rows, graph.constant([MIN_ATTENDING]))
        self._extra = graph.op("Sub", rows, self.num_rows)
        end = graph.op("Concat", zero, zero, zero, self._extra, axis=0)
        self.positions = graph.op("Pad", inputs.positions, end)
        stop = graph.op("Add", inputs.cache_length, rows)
        self.last_slot = graph.op("Cast", graph.op("Sub", stop, graph.constant([1])), to=INT32)
        self.capacity = graph.constant(capacity, np.int32)

    def extra_rows(self, width: int) -> ir.Value:
        """Return the padding rows, zeros [1, rows - Q, width]."""
        if width not in self._zeros:
            sizes = [self._graph.constant([1]), self._extra, self._graph.constant([width])]
            shape = self._graph.op("Concat", *sizes, axis=0)
            zero = self._graph.constant(0.0, np.float32)
            self._zeros[width] = self._graph.op("Expand", zero, shape)
        return self._zeros[width]

    def bias(self, window: int | None) -> ir.Value:
        """Return the bias that is added to attention scores, float32 [1, 1, rows, C]."""
        if window not in self._biases:
            zero = self._graph.constant([0])
            pads = self._graph.op("Concat", *[zero] * 6, self._extra, zero, axis=0)
            bias = self._visibility.bias(window)
            self._biases[window] = self._graph.op("Pad", bias, pads)
        return self._biases[window]
