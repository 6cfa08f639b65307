"""Decoder parts as standard ONNX operators (opset 24), for TensorRT and similar runtimes.

TensorRT requires Attention with one output, 4-D operands, neither past inputs nor
`nonpad_kv_seqlen`, and its scale applied to Q; caches written in place by TensorScatter; and strong
types, so that every change of type is a Cast here. Steps read only the first S slots of the caches,
given by the input `slots` [S], so that their cost follows the length of the text. Activations and
caches are float16 unless the precision is fp32. The residual stream, norms and logits stay float32,
since some models' residuals exceed float16, and a few float32 rows cost little compared with the
weights.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bita.adapter import MAX_READ_ELSE
from bita.engine import SLOTS
from bita.export.architecture import Architecture, Layer
from bita.export.dialects.graph_options import GraphOptions
from bita.export.dialects.linear import HEAD_LABEL, Linear
from bita.export.onnx.decoder_weights import DecoderWeights
from bita.export.onnx.visibility import HIDDEN, GatheredVisibility, StepInputs
from bita.export.onnx.writer import FLOAT, INT64, GraphWriter

STANDARD_OPSETS = {"": 24}


class StandardDialect:
    """Writes the parts of a decoder; weights are read from the checkpoint when they are needed."""

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
        self._compute = weights.compute
        self._mask_rows: ir.Value | None = None

    def place(self, inputs: StepInputs) -> None:
        self._inputs = inputs
        self._slots = self.graph.input(SLOTS, INT64, ("S",))
        self._visibility = GatheredVisibility(self.graph, inputs, self._capacity, self._slots)

    def embed(self, name: str, token_ids: ir.Value) -> ir.Value:
        return self._as_float(self.graph.op("Gather", self.weights.table(name), token_ids))

    def norm(self, hidden: ir.Value, weight: ir.Value) -> ir.Value:
        epsilon = self._architecture.norm_eps
        return self.graph.op("RMSNormalization", hidden, weight, axis=-1, epsilon=epsilon)

    def add_norm(
        self, residual: ir.Value, delta: ir.Value, weight: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        total = self.graph.op("Add", residual, delta)
        return self.norm(total, weight), total

    def linear(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        """Multiply in the compute type, whatever type `hidden` has."""
        hidden = self._as_compute(hidden)
        self._name(hidden, f"{label}.input", self._compute)
        product = self._linear.product(hidden, label, names)
        self._name(product, f"{label}.output", self._compute)
        bias = self.weights.bias(label, names)
        return product if bias is None else self.graph.op("Add", product, bias)

    def as_residual(self, delta: ir.Value) -> ir.Value:
        return self._as_float(delta)

    def add_lora(
        self,
        product: ir.Value,
        hidden: ir.Value,
        down: ir.Value,
        up: ir.Value,
        first: ir.Value,
        is_attended: bool,
    ) -> ir.Value:
        """Compute LoRA for all rows and select some, so that no shape depends on a value.

        Attended sums that are NaN, or so large that their scores would exceed float16, are not
        selected.
        """
        graph = self.graph
        thin = graph.op("MatMul", self._as_float(hidden), down)
        thin = self._as_compute(graph.op("MatMul", thin, up))
        if self._mask_rows is None:
            self._mask_rows = self._rows_from(first)
        total, taken = graph.op("Add", product, thin), self._mask_rows
        if is_attended and self._compute != FLOAT:
            most = graph.constant(MAX_READ_ELSE, self._compute.numpy())
            is_small = graph.op("LessOrEqual", graph.op("Abs", total), most)  # false for NaN
            taken = graph.op("And", taken, is_small)
        return graph.op("Where", taken, total, product)

    def _rows_from(self, first: ir.Value) -> ir.Value:
        """Return [Q, 1], true in the rows from `first` on."""
        num_rows = self.graph.op("Shape", self._inputs.sees_prefix)
        rows = self.graph.op("Slice", self._slots, self.graph.constant([0]), num_rows)
        is_later = self.graph.op("GreaterOrEqual", rows, first)
        return self.graph.op("Unsqueeze", is_later, self.graph.constant([1]))

    def head(self, rows: ir.Value, name: str) -> ir.Value:
        rows = self._as_compute(rows)
        self._name(rows, f"{HEAD_LABEL}.input", self._compute)
        return self._as_float(self._linear.product(rows, HEAD_LABEL, [name]))

    def activation(self, gate: ir.Value) -> ir.Value:
        if self._architecture.activation == "silu":
            return self.graph.op("Mul", gate, self.graph.op("Sigmoid", gate))
        return self.graph.op("Gelu", gate, approximate="tanh")

    def attention(self, qkv: ir.Value, index: int, layer: Layer) -> ir.Value:
        query, key, value = self._heads(qkv, index, layer)
        scale = self.graph.constant(self._architecture.attention_scale, self._compute.numpy())
        query = self.graph.op("Mul", query, scale)
        keys = self._update_cache(f"{index}.key", key)
        values = self._update_cache(f"{index}.value", value)
        mask = self._visibility.mask(layer.window)
        attended = self._attend(query, keys, values, mask)
        rows = self.graph.op("Transpose", attended, perm=[0, 2, 1, 3])
        width = self._architecture.num_heads * self._architecture.head_dim
        return self.graph.op("Reshape", rows, self.graph.constant([0, 0, width]))

    def _heads(
        self, qkv: ir.Value, index: int, layer: Layer
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return Q [1, heads, Q, D] and K and V [1, H, Q, D], with norms and rotary embedding."""
        arch = self._architecture
        counts = arch.num_heads, arch.num_kv_heads, arch.num_kv_heads
        widths = self.graph.constant([count * arch.head_dim for count in counts])
        parts = self.graph.ops("Split", qkv, widths, num_outputs=3, axis=-1)
        query, key, value = (
            self._split_heads(part, count) for part, count in zip(parts, counts, strict=True)
        )
        if arch.qk_norm:
            prefix = f"model.layers.{index}.self_attn"
            query = self._head_norm(query, f"{prefix}.q_norm.weight")
            key = self._head_norm(key, f"{prefix}.k_norm.weight")
        return self._rotate(query, layer), self._rotate(key, layer), value

    def _split_heads(self, part: ir.Value, num_heads: int) -> ir.Value:
        shape = self.graph.constant([0, 0, num_heads, self._architecture.head_dim])
        return self.graph.op("Transpose", self.graph.op("Reshape", part, shape), perm=[0, 2, 1, 3])

    def _head_norm(self, heads: ir.Value, name: str) -> ir.Value:
        return self._as_compute(self.norm(self._as_float(heads), self.weights.norm(name)))

    def _rotate(self, heads: ir.Value, layer: Layer) -> ir.Value:
        if layer.rope is None:
            return heads
        cos, sin = self.weights.rope(layer.rope, self._capacity)
        rotary_dim = 2 * len(layer.rope.inv_freq)
        partial = rotary_dim if rotary_dim != self._architecture.head_dim else 0
        return self.graph.op(
            "RotaryEmbedding",
            heads,
            cos,
            sin,
            self._inputs.positions,
            rotary_embedding_dim=partial,
        )

    def _update_cache(self, name: str, rows: ir.Value) -> ir.Value:
        """Append the step's rows to the text in the cache; return its first slots [1, H, S, D].

        Past and present are bound to the same memory.
        """
        past, start = self._past(name), self._inputs.cache_length
        present = self.graph.op("TensorScatter", past, rows, start, axis=-2)
        self.graph.output(f"present.{name}", present, self._compute, self._cache_shape())
        return self._visibility.first_slots(present)

    def _past(self, name: str) -> ir.Value:
        return self.graph.input(f"past.{name}", self._compute, self._cache_shape())

    def _cache_shape(self) -> tuple[int, ...]:
        arch = self._architecture
        return (1, arch.num_kv_heads, self._capacity, arch.head_dim)

    def _attend(
        self, query: ir.Value, keys: ir.Value, values: ir.Value, mask: ir.Value
    ) -> ir.Value:
        """Attend: [1, heads, Q, D]. TensorRT's Attention has no soft cap on the scores."""
        if self._architecture.attention_softcap:
            return self._attend_by_parts(query, keys, values, mask)
        return self.graph.op("Attention", query, keys, values, mask, scale=1.0)

    def _attend_by_parts(
        self, query: ir.Value, keys: ir.Value, values: ir.Value, mask: ir.Value
    ) -> ir.Value:
        """Attend by MatMul and Softmax; query heads that share a key head become more rows."""
        graph, arch = self.graph, self._architecture
        queries = graph.op("Reshape", query, graph.constant([1, arch.num_kv_heads, -1, 0]))
        transposed = graph.op("Transpose", keys, perm=[0, 1, 3, 2])
        by_head = graph.constant([1, arch.num_heads, -1, 0])
        products = graph.op("Reshape", graph.op("MatMul", queries, transposed), by_head)
        scores = self._as_float(products)
        if arch.attention_softcap:
            cap = graph.constant(arch.attention_softcap, np.float32)
            scores = graph.op("Mul", graph.op("Tanh", graph.op("Div", scores, cap)), cap)
        scores = graph.op("Where", mask, scores, graph.constant(HIDDEN, np.float32))
        shares = self._as_compute(graph.op("Softmax", scores, axis=-1))
        by_kv_head = graph.constant([1, arch.num_kv_heads, -1, 0])
        attended = graph.op("MatMul", graph.op("Reshape", shares, by_kv_head), values)
        return graph.op("Reshape", attended, by_head)

    def _as_float(self, value: ir.Value) -> ir.Value:
        return self._cast(value, FLOAT)

    def _as_compute(self, value: ir.Value) -> ir.Value:
        return self._cast(value, self._compute)

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Write a Cast, or nothing if everything is float32."""
        if self._compute == FLOAT:
            return value
        return self.graph.op("Cast", value, to=dtype)

    def _name(self, value: ir.Value, name: str, dtype: ir.DataType) -> None:
        value.name, value.type = name, ir.TensorType(dtype)
