"""Quantized linear layers of the standard dialect: 4-bit blocks, or 8-bit Q/DQ.

Quantization is explicit, symmetric and without zero points, as TensorRT requires. Weights keep the
checkpoint's layout [out, in] and are transposed after DequantizeLinear, so that they can be written
in pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bita.errors import ModelError
from bita.export.onnx.decoder_weights import DecoderWeights
from bita.export.onnx.storage import narrowed
from bita.export.onnx.writer import GraphWriter
from bita.export.quantization.gptq import Moments, int4_pieces
from bita.export.quantization.int4 import Int4Grid
from bita.export.quantization.scales import MIN_SCALE, stored_scales
from bita.export.quantization.smoothing import Ranges, Smoothing, smoothing
from bita.tensors import Float32Array, UInt8Array

# TensorRT's documentation names blocks of 64 and 128; sizes such as 576 are not multiples of 128.
GRID = Int4Grid(block_size=64, negative_scales=False, scale_type=np.float16)
SIGNED = 0x88  # flips the top bit of two nibbles: 0..15 becomes -8..7


@dataclass(frozen=True)
class EightBits:
    """A type of 8-bit values."""

    dtype: ir.DataType
    max_value: float  # the largest number of the type
    alpha: float  # of `smoothing`; 0 for none
    # suffixes of the labels whose inputs stay in floats, so that only their weights have 8 bits
    float_inputs: tuple[str, ...] = ()


EIGHT_BITS = {
    # A few inputs of the down projection are a thousand times as large as the others (arXiv
    # 2402.17762), which a single scale cannot represent. KL of the default model is 0.3 with 8-bit
    # inputs there, and 0.03 without.
    "int8": EightBits(ir.DataType.INT8, 127, alpha=0.5, float_inputs=("mlp.down_proj",)),
    # Floats keep their digits next to a large channel.
    "fp8": EightBits(ir.DataType.FLOAT8E4M3FN, 448, alpha=0.0),
}


class Int4QdqLinear:
    """Writes products of activations and 4-bit blocks, in the compute type.

    Weights are rounded for the `moments` of the inputs; without moments, to the nearest values.
    """

    def __init__(
        self, graph: GraphWriter, weights: DecoderWeights, moments: Moments | None = None
    ) -> None:
        self._graph = graph
        self._weights = weights
        self._moments: Moments = {} if moments is None else moments

    def product(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        """See `Linear`. Raises ModelError if the inputs are not whole blocks."""
        num_out, num_in = self._weights.shape(names)
        if num_in % GRID.block_size:
            raise ModelError(
                f"{label} has {num_in} inputs, not a multiple of {GRID.block_size}, the size of "
                "TensorRT's int4 blocks; choose PRECISION=fp16"
            )
        pieces = int4_pieces(self._weights.chunks(names), self._moments, label, GRID)
        packed, scales = self._graph.scaled_weight(
            f"{label}.weight_int4",
            ir.DataType.INT4,
            (num_out, num_in),
            ((values ^ np.uint8(SIGNED), scales) for values, scales in pieces),
        )
        scale = self._weights.scales(label, names, scales, self._weights.compute)
        blocks = self._graph.op(
            "DequantizeLinear", packed, scale, axis=1, block_size=GRID.block_size
        )
        return _transposed_product(self._graph, hidden, blocks)


class EightBitQdqLinear:
    """Writes products of activations and weights of 8 bits, in the compute type.

    `precision` is a key of EIGHT_BITS; `ranges` determine the scales of the activations.
    """

    def __init__(
        self,
        graph: GraphWriter,
        weights: DecoderWeights,
        precision: str,
        ranges: Ranges | None = None,
    ) -> None:
        self._graph = graph
        self._weights = weights
        self._precision = precision
        self._kind = EIGHT_BITS[precision]
        self._ranges: Ranges = {} if ranges is None else ranges

    def product(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        """See `Linear`. Raises ModelError if the range of the input is missing."""
        kind = self._kind
        if label.endswith(kind.float_inputs):
            factors = np.ones(self._weights.shape(names)[1], np.float32)
        else:
            smooth = self._smoothing(label, names)
            hidden, factors = self._round_input(hidden, label, smooth), smooth.factors
        matrix = self._channels(label, names, factors)
        return _transposed_product(self._graph, hidden, matrix)

    def _smoothing(self, label: str, names: Sequence[str]) -> Smoothing:
        if label not in self._ranges:
            raise ModelError(
                f"{self._precision} needs the input range of {label}; calibrate, or choose "
                "PRECISION=int4 or fp16"
            )
        largest, compute = self._ranges[label], self._weights.compute.numpy()
        narrowed(f"the input of {label}, as seen in calibration,", largest, compute)
        chunks = self._weights.chunks(names)
        return smoothing(largest, chunks, self._kind.max_value, self._kind.alpha)

    def _round_input(self, hidden: ir.Value, label: str, smooth: Smoothing) -> ir.Value:
        """Divide the input by the smoothing factors, if there are any, and round it to 8 bits."""
        graph, kind, compute = self._graph, self._kind, self._weights.compute
        if kind.alpha:
            inverse = self._weights.derived(f"{label}.smoothing", 1 / smooth.factors, compute)
            hidden = graph.op("Mul", hidden, inverse)
        scale = graph.constant(smooth.input_scale, compute.numpy())
        zero = graph.constant(0, kind.dtype.numpy())
        hidden = graph.op("QuantizeLinear", hidden, scale, zero)
        return graph.op("DequantizeLinear", hidden, scale)

    def _channels(self, label: str, names: Sequence[str], factors: Float32Array) -> ir.Value:
        """Write weights [out, in] times `factors` [in] in 8 bits, with a scale for each output."""
        values, scales = self._graph.scaled_weight(
            f"{label}.weight_{self._precision}",
            self._kind.dtype,
            self._weights.shape(names),
            (self._round(chunk * factors) for chunk in self._weights.chunks(names)),
        )
        scale = self._weights.scales(label, names, scales, self._weights.compute)
        return self._graph.op("DequantizeLinear", values, scale, axis=0)

    def _round(self, rows: Float32Array) -> tuple[UInt8Array, Float32Array]:
        """Return the values of rows [n, in] as bytes, and the scale of each row [n]."""
        kind = self._kind
        largest = np.abs(rows).max(-1)
        scale = stored_scales(largest / np.float32(kind.max_value), self._weights.compute.numpy())
        scale = np.where(largest == 0, MIN_SCALE, scale)  # any positive number, for zeros
        values = np.clip(rows / scale[:, None], -kind.max_value, kind.max_value)
        if kind.dtype == ir.DataType.INT8:
            values = np.rint(values)
        return values.astype(kind.dtype.numpy()).view(np.uint8), scale


def _transposed_product(graph: GraphWriter, hidden: ir.Value, matrix: ir.Value) -> ir.Value:
    """Multiply hidden [.., in] by a matrix [out, in]."""
    return graph.op("MatMul", hidden, graph.op("Transpose", matrix, perm=[1, 0]))
