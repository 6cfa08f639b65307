"""The attention mask of a step, computed inside the graph from the tree's static block.

Cache slots [0, prefix_length) hold the adapter's prefix, slots [prefix_length, cache_length) the
text, and the step's own rows follow. The rules are those of BiTA (arXiv 2401.12522); windows are
measured in positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bita.export.onnx.writer import BOOL, INT64, GraphWriter

# The bias is not -inf, since a row with nothing but -inf would make softmax NaN.
HIDDEN = np.finfo(np.float32).min


@dataclass(frozen=True)
class StepInputs:
    """Inputs that place the rows of a step."""

    positions: ir.Value  # [1, Q], position of each row in the text, without the prefix
    cache_length: ir.Value  # [1], cache slots in use before the step, including the prefix
    prefix_length: ir.Value  # [1], P, slots of the prefix
    sees: ir.Value  # [Q, Q], whether row i attends to row j
    sees_prefix: ir.Value  # [Q], whether each row attends to the prefix


def step_inputs(graph: GraphWriter) -> StepInputs:
    """Declare the inputs in a graph."""
    return StepInputs(
        positions=graph.input("positions", INT64, (1, "Q")),
        cache_length=graph.input("cache_length", INT64, (1,)),
        prefix_length=graph.input("prefix_length", INT64, (1,)),
        sees=graph.input("sees", BOOL, ("Q", "Q")),
        sees_prefix=graph.input("sees_prefix", BOOL, ("Q",)),
    )


class Visibility:
    """The cache slots that each row attends to, as a mask for each window size in use.

    Args:
        graph: The graph.
        inputs: The placement of the rows.
        capacity: C, cache slots.
        slots: The first S slots, [1, S]; None for all.
    """

    def __init__(
        self,
        graph: GraphWriter,
        inputs: StepInputs,
        capacity: int,
        slots: ir.Value | None = None,
    ) -> None:
        self._graph = graph
        self._inputs = inputs
        self._capacity = capacity
        self._slots = graph.constant(np.arange(capacity)[None, :]) if slots is None else slots
        self._in_prefix = graph.op("Less", self._slots, inputs.prefix_length)
        self._past = self._see_past()
        self._place = self._placement()
        self._shared: dict[tuple[str, int | None], ir.Value] = {}

    def mask(self, window: int | None) -> ir.Value:
        """Return the mask [1, 1, Q, S], true where a row attends to a slot; None: no window."""
        return self._once("mask", window, self._visible)

    def bias(self, window: int | None) -> ir.Value:
        """Return the mask as a bias that is added to attention scores, float32."""
        return self._once("bias", window, self._make_bias)

    def _once(
        self, kind: str, window: int | None, make: Callable[[int | None], ir.Value]
    ) -> ir.Value:
        if window is not None and window >= self._capacity:
            window = None
        if (kind, window) not in self._shared:
            value = self._graph.op("Unsqueeze", make(window), self._graph.constant([0, 1]))
            self._shared[kind, window] = value
        return self._shared[kind, window]

    def _see_past(self) -> ir.Value:
        """Return [Q, S]: the text is visible to all rows, the prefix only to mask rows."""
        graph, inputs = self._graph, self._inputs
        in_cache = graph.op("Less", self._slots, inputs.cache_length)
        rows = graph.op("Unsqueeze", inputs.sees_prefix, graph.constant([1]))
        allowed = graph.op("Or", graph.op("Not", self._in_prefix), rows)
        return graph.op("And", in_cache, allowed)

    def _placement(self) -> ir.Value:
        """Return the pads that move a [Q, Q] block to its slots in [Q, C]."""
        graph, inputs = self._graph, self._inputs
        num_rows = graph.op("Shape", inputs.sees_prefix)
        end = graph.op("Add", inputs.cache_length, num_rows)
        right = graph.op("Sub", graph.constant([self._capacity]), end)
        zero = graph.constant([0])
        return graph.op("Concat", zero, inputs.cache_length, zero, right, axis=0)

    def _move_to_slots(self, step: ir.Value) -> ir.Value:
        """Move a [Q, Q] block to its slots, with false elsewhere: [Q, S]."""
        return self._graph.op("Pad", step, self._place)

    def _visible(self, window: int | None) -> ir.Value:
        graph, inputs = self._graph, self._inputs
        past, step = self._past, inputs.sees
        if window is not None:
            past = graph.op("And", past, self._past_in_window(window))
            step = graph.op("And", step, self._step_in_window(window))
        return graph.op("Or", past, self._move_to_slots(step))

    def _make_bias(self, window: int | None) -> ir.Value:
        return self._graph.op(
            "Where",
            self._visible(window),
            self._graph.constant(0.0, np.float32),
            self._graph.constant(HIDDEN, np.float32),
        )

    def _first_visible(self, window: int) -> ir.Value:
        """Return the first position that each row sees, [Q, 1]."""
        graph = self._graph
        column = graph.op("Reshape", self._inputs.positions, graph.constant([-1, 1]))
        return graph.op("Sub", column, graph.constant([window - 1]))

    def _past_in_window(self, window: int) -> ir.Value:
        graph = self._graph
        positions = graph.op("Sub", self._slots, self._inputs.prefix_length)
        near = graph.op("GreaterOrEqual", positions, self._first_visible(window))
        return graph.op("Or", near, self._in_prefix)

    def _step_in_window(self, window: int) -> ir.Value:
        return self._graph.op("GreaterOrEqual", self._inputs.positions, self._first_visible(window))


class GatheredVisibility(Visibility):
    """A Visibility without Pad, with which shapes would depend on `cache_length`.

    TensorRT reads such an input from the host, and a captured CUDA graph could not change it.
    `slots` [S] are the first slots of the cache; later slots are not read.
    """

    def __init__(
        self, graph: GraphWriter, inputs: StepInputs, capacity: int, slots: ir.Value
    ) -> None:
        self.num_slots = graph.op("Shape", slots)
        self._line = slots
        row = graph.op("Unsqueeze", slots, graph.constant([0]))
        super().__init__(graph, inputs, capacity, row)

    def first_slots(self, cache: ir.Value) -> ir.Value:
        """Return the first slots [1, H, S, D] of a cache [1, H, C, D]."""
        start, axis = self._graph.constant([0]), self._graph.constant([2])
        return self._graph.op("Slice", cache, start, self.num_slots, axis)

    def merge(self, past: ir.Value, rows: ir.Value) -> ir.Value:
        """Return the first slots [1, H, S, D], with the step's rows [1, H, Q, D] in their slots."""
        graph = self._graph
        placed = graph.op("Gather", rows, self._row, axis=2)
        column = self._once("column", None, lambda _: self._of_step_column())
        return graph.op("Where", column, placed, self.first_slots(past))

    def _placement(self) -> ir.Value:
        """Compute for each slot [S] the step's row in it, or any row if it has none."""
        graph, inputs = self._graph, self._inputs
        place = graph.op("Sub", self._line, inputs.cache_length)
        # The last row is taken from the slots: a number computed from a shape would be on the host,
        # and ONNX Runtime does not capture a CUDA graph that copies from the host.
        num_rows = graph.op("Shape", inputs.sees_prefix)
        before = graph.op("Sub", num_rows, graph.constant([1]))
        last = graph.op("Slice", self._line, before, num_rows)
        self._row = graph.op("Min", graph.op("Max", place, graph.constant([0])), last)
        self._of_step = graph.op("Equal", place, self._row)
        return place

    def _of_step_column(self) -> ir.Value:
        return self._graph.op("Unsqueeze", self._of_step, self._graph.constant([1]))

    def _move_to_slots(self, step: ir.Value) -> ir.Value:
        graph = self._graph
        return graph.op("And", graph.op("Gather", step, self._row, axis=1), self._of_step)
