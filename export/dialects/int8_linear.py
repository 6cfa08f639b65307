"""Linear layers in 8 bits: a scale for each row of activations, and one for each output.

The products are sums of whole numbers, so that a row's result never depends on the rows beside it.
"""

import numpy as np
import onnx_ir as ir

from bita.export.onnx.writer import FLOAT, INT8, MICROSOFT, UINT8, GraphWriter
from bita.export.quantization.int8 import MAX_INT8, Pieces, quantized
from bita.tensors import Float32Array

ZERO_POINT = 128  # of unsigned values


class Int8Linear:
    """Writes 8-bit linear layers.

    signed: weights as int8, which VNNI multiplies at full speed; kernels of older x86 processors
    add up pairs of such products in 16 bits, which overflow. Else as uint8, which are exact on all.
    """

    def __init__(self, graph: GraphWriter, signed: bool) -> None:
        self._graph = graph
        self._signed = signed
        self._zero_points: dict[int, ir.Value] = {}

    def product(
        self,
        hidden: ir.Value,
        num_axes: int,
        label: str,
        size: tuple[int, int],
        rows: Pieces,
        factors: Float32Array | None = None,
    ) -> ir.Value:
        """hidden times the weights, float32.

        hidden: [1, Q, in] or, with num_axes 2, [R, in]. size: out, in. rows: of the weights.
        factors: [in], what each input is divided by.
        """
        graph = self._graph
        if factors is not None:
            rows = (piece * factors for piece in rows)
            inverse = graph.weight(f"{label}.smoothing", FLOAT, factors.shape, [1 / factors])
            hidden = graph.op("Mul", hidden, inverse)
        values, scales = quantized(rows, size)
        row_scales, activations = self._activations(hidden, num_axes)
        zero_point = graph.constant(ZERO_POINT, np.uint8)
        if self._signed:
            weight = graph.weight(f"{label}.weight_int8", INT8, values.shape, [values])
            weight_point = None
        else:
            shifted = values.view(np.uint8) ^ np.uint8(ZERO_POINT)
            weight = graph.weight(f"{label}.weight_uint8", UINT8, shifted.shape, [shifted])
            weight_point = zero_point
        one = graph.constant(1.0, np.float32)
        columns = graph.weight(f"{label}.scales", FLOAT, scales.shape, [scales])
        product = graph.op(
            "MatMulIntegerToFloat",
            *(activations, weight, one, columns, zero_point, weight_point),
            domain=MICROSOFT,
        )
        return graph.op("Mul", product, row_scales)

    def _activations(self, hidden: ir.Value, num_axes: int) -> tuple[ir.Value, ir.Value]:
        """Scales [..., 1] and uint8 values of the rows; a row of zeros has the scale 0."""
        graph = self._graph
        last = graph.constant([-1])
        most = graph.op("ReduceMax", graph.op("Abs", hidden), last, keepdims=1)
        scales = graph.op("Mul", most, graph.constant(1 / MAX_INT8, np.float32))
        flat = graph.op("Reshape", scales, last)
        if num_axes not in self._zero_points:
            point = graph.constant(ZERO_POINT, np.uint8)
            self._zero_points[num_axes] = graph.op("Expand", point, graph.op("Shape", flat))
        points = self._zero_points[num_axes]
        return scales, graph.op("QuantizeLinear", hidden, flat, points, axis=num_axes - 2)
