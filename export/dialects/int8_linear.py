"""Linear layers in 8 bits, with a scale for each row of activations and one for each output.

The products are sums of whole numbers, so that a row's result never depends on the other rows.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bita.export.dialects.linear import HEAD_LABEL
from bita.export.onnx.decoder_weights import DecoderWeights
from bita.export.onnx.writer import FLOAT, INT8, MICROSOFT, UINT8, GraphWriter
from bita.export.quantization.int8 import MAX_INT8, Pieces, quantized
from bita.export.quantization.smoothing import Squares, smoothing_factors
from bita.tensors import Int8Array

ZERO_POINT = 128  # of unsigned values


class Int8Linear:
    """Writes 8-bit linear layers, whose products are float32.

    Args:
        graph: The graph.
        weights: The weights of the checkpoint.
        signed: True stores weights as int8, which VNNI multiplies at full speed; kernels of older
            x86 processors add pairs of such products in 16 bits, which overflow. False stores
            uint8, which is exact on all processors.
        squares: Sums of squared inputs by label, for which inputs are smoothed; the inputs of
            other labels stay unchanged.
    """

    def __init__(
        self,
        graph: GraphWriter,
        weights: DecoderWeights,
        signed: bool,
        squares: Squares | None = None,
    ) -> None:
        self._graph = graph
        self._weights = weights
        self._signed = signed
        self._squares: Squares = {} if squares is None else squares
        self._zero_points: dict[int, ir.Value] = {}

    def product(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        """See `Linear`."""
        graph = self._graph
        hidden, rows = self._smooth(hidden, label, names)
        values, scales = quantized(rows, self._weights.shape(names))
        row_scales, activations = self._activations(hidden, 0 if label == HEAD_LABEL else 1)
        zero_point = graph.constant(ZERO_POINT, np.uint8)
        weight = self._weight(label, values)
        one = graph.constant(1.0, np.float32)
        columns = self._weights.scales(label, names, scales, FLOAT)
        weight_point = None if self._signed else zero_point
        product = graph.op(
            "MatMulIntegerToFloat",
            *(activations, weight, one, columns, zero_point, weight_point),
            domain=MICROSOFT,
        )
        return graph.op("Mul", product, row_scales)

    def _smooth(
        self, hidden: ir.Value, label: str, names: Sequence[str]
    ) -> tuple[ir.Value, Pieces]:
        """Divide each input by its factor, and multiply the weights' columns [n, in] by it."""
        rows = self._weights.chunks(names)
        if label not in self._squares:
            return hidden, rows
        factors = smoothing_factors(self._squares[label], self._weights.chunks(names))
        inverse = self._weights.derived(f"{label}.smoothing", 1 / factors, FLOAT)
        return self._graph.op("Mul", hidden, inverse), (piece * factors for piece in rows)

    def _weight(self, label: str, values: Int8Array) -> ir.Value:
        """Write the matrix [in, out]; unsigned values are shifted by the zero point."""
        if self._signed:
            return self._graph.weight(f"{label}.weight_int8", INT8, values.shape, [values])
        shifted = values.view(np.uint8) ^ np.uint8(ZERO_POINT)
        return self._graph.weight(f"{label}.weight_uint8", UINT8, shifted.shape, [shifted])

    def _activations(self, hidden: ir.Value, row_axis: int) -> tuple[ir.Value, ir.Value]:
        """Return scales [..., 1] and uint8 values of the rows; a row of zeros has the scale 0."""
        graph = self._graph
        last = graph.constant([-1])
        most = graph.op("ReduceMax", graph.op("Abs", hidden), last, keepdims=1)
        scales = graph.op("Mul", most, graph.constant(1 / MAX_INT8, np.float32))
        flat = graph.op("Reshape", scales, last)
        if row_axis not in self._zero_points:
            point = graph.constant(ZERO_POINT, np.uint8)
            self._zero_points[row_axis] = graph.op("Expand", point, graph.op("Shape", flat))
        points = self._zero_points[row_axis]
        return scales, graph.op("QuantizeLinear", hidden, flat, points, axis=row_axis)
