"""Decoder parts in operators that every TensorRT 10 reads, for JetPack 6 (10.3).

RMSNormalization, RotaryEmbedding, TensorScatter, Attention and Gelu are not used. Caches are read
only: the step's keys and values are an output `rows` [2L, H, Q, D] with the keys of layer l at 2l
and its values at 2l + 1, and the runtime appends them to the text. Inside a step they are merged
into the cache's slots, so that a row attends in the same order whether another row belongs to this
step or to an earlier one.
"""

import numpy as np
import onnx_ir as ir

from bita.engine import NEW_ROWS
from bita.export.architecture import Layer
from bita.export.dialects.standard_dialect import StandardDialect
from bita.export.onnx.visibility import StepInputs
from bita.export.rope import Rope

PLAIN_OPSETS = {"": 21}  # the first opset with blocks of 4 bits
GELU_CUBIC = 0.044715  # of the tanh approximation, arXiv 1606.08415


class PlainDialect(StandardDialect):
    """The standard dialect with its newest operators decomposed into older ones."""

    def norm(self, hidden: ir.Value, weight: ir.Value) -> ir.Value:
        graph = self.graph
        squares = graph.op("Mul", hidden, hidden)
        mean = graph.op("ReduceMean", squares, graph.constant([-1]), keepdims=1)
        epsilon = graph.constant(self._architecture.norm_eps, np.float32)
        size = graph.op("Sqrt", graph.op("Add", mean, epsilon))
        return graph.op("Mul", graph.op("Div", hidden, size), weight)

    def activation(self, gate: ir.Value) -> ir.Value:
        if self._architecture.activation == "silu":
            return super().activation(gate)
        graph = self.graph
        cube = graph.op("Mul", graph.op("Mul", gate, gate), gate)
        inner = graph.op("Add", gate, graph.op("Mul", cube, self._number(GELU_CUBIC)))
        inner = graph.op("Mul", inner, self._number(np.sqrt(2 / np.pi)))
        share = graph.op("Add", graph.op("Tanh", inner), self._number(1))
        return graph.op("Mul", graph.op("Mul", gate, self._number(0.5)), share)

    def place(self, inputs: StepInputs) -> None:
        super().place(inputs)
        self._new_rows: list[ir.Value] = []
        self._rotary_rows: dict[Rope, tuple[ir.Value, ir.Value]] = {}

    def _update_cache(self, name: str, rows: ir.Value) -> ir.Value:
        self._new_rows.append(rows)
        arch = self._architecture
        if len(self._new_rows) == 2 * arch.num_layers:
            shape = (2 * arch.num_layers, arch.num_kv_heads, "Q", arch.head_dim)
            every = self.graph.op("Concat", *self._new_rows, axis=0)
            self.graph.output(NEW_ROWS, every, self._compute, shape)
        return self._visibility.merge(self._past(name), rows)

    def _attend(
        self, query: ir.Value, keys: ir.Value, values: ir.Value, mask: ir.Value
    ) -> ir.Value:
        return self._attend_by_parts(query, keys, values, mask)

    def _rotate(self, heads: ir.Value, layer: Layer) -> ir.Value:
        if layer.rope is None:
            return heads
        graph, half = self.graph, len(layer.rope.inv_freq)
        cos, sin = self._rotary_rows_of(layer.rope)
        rest = self._architecture.head_dim - 2 * half
        sizes = graph.constant([half, half, rest] if rest else [half, half])
        first, second, *others = graph.ops(
            "Split", heads, sizes, num_outputs=3 if rest else 2, axis=-1
        )
        rotated = (
            graph.op("Sub", graph.op("Mul", first, cos), graph.op("Mul", second, sin)),
            graph.op("Add", graph.op("Mul", second, cos), graph.op("Mul", first, sin)),
        )
        return graph.op("Concat", *rotated, *others, axis=-1)

    def _rotary_rows_of(self, rope: Rope) -> tuple[ir.Value, ir.Value]:
        """Return cos and sin at the step's positions, [1, Q, half]."""
        if rope not in self._rotary_rows:
            tables = self.weights.rope(rope, self._capacity)
            cos, sin = (self.graph.op("Gather", table, self._inputs.positions) for table in tables)
            self._rotary_rows[rope] = cos, sin
        return self._rotary_rows[rope]

    def _number(self, value: float) -> ir.Value:
        return self.graph.constant(value, self._compute.numpy())
