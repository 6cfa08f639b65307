"""Linear layers of the standard dialect: float, 4-bit blocks, or 8-bit Q/DQ.

Quantization is explicit, symmetric and without zero points, which is what TensorRT reads. Weights
keep the checkpoint's layout [out, in] and are turned behind DequantizeLinear, so that they are
written in pieces.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bita.errors import ModelError
from bita.export.onnx.decoder_weights import DecoderWeights
from bita.export.onnx.writer import FLOAT, FLOAT16, GraphWriter
from bita.export.quantization.gptq import ErrorSpread, Moments, quantize_int4_for
from bita.export.quantization.int4 import Int4Grid, quantize_int4
from bita.export.quantization.smoothing import Ranges, Smoothing, scale_of, smoothing
from bita.tensors import Float32Array

STANDARD_PRECISIONS = ("fp32", "fp16", "int8", "int4", "fp8")
# TensorRT's documents name blocks of 64 and 128; hidden sizes such as 576 are no multiple of 128.
GRID = Int4Grid(block_size=64, negative_scales=False)
SIGNED = 0x88  # flips the top bit of two nibbles: 0..15 becomes -8..7


@dataclass(frozen=True)
class EightBits:
    """A type of 8-bit values.

    most: its largest number. alpha: of `smoothing`. float_inputs: ends of the labels of linear
    layers that keep their inputs as they are, and have 8-bit weights only.
    """

    dtype: ir.DataType
    most: float
    alpha: float
    float_inputs: tuple[str, ...] = ()


EIGHT_BITS = {
    # The down projection reads a few values a thousand times the others (arXiv 2402.17762), which
    # one scale for all cannot hold: KL of the default model is 0.3 with it and 0.03 without.
    "int8": EightBits(ir.DataType.INT8, 127, alpha=0.5, float_inputs=("mlp.down_proj",)),
    # floats keep their digits beside a large channel
    "fp8": EightBits(ir.DataType.FLOAT8E4M3FN, 448, alpha=0.0),
}


def compute_type(precision: str) -> ir.DataType:
    """The type of activations and caches."""
    return FLOAT if precision == "fp32" else FLOAT16


class StandardLinear:
    """Writes products of activations and weights.

    moments: what int4 weights are rounded for; to the nearest where there are none. ranges: what
    int8 and fp8 activations are scaled by; ModelError where they are missing.
    """

    def __init__(
        self,
        graph: GraphWriter,
        weights: DecoderWeights,
        precision: str,
        moments: Moments | None = None,
        ranges: Ranges | None = None,
    ) -> None:
        self._graph = graph
        self._weights = weights
        self._precision = precision
        self._compute = compute_type(precision)
        self._moments: Moments = {} if moments is None else moments
        self._ranges: Ranges = {} if ranges is None else ranges

    def product(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        """hidden [.., in] times the weights of `names` side by side, all in the compute type."""
        if self._precision == "int4":
            return self._int4_product(hidden, label, names)
        if self._precision in EIGHT_BITS:
            return self._eight_bit_product(hidden, label, names)
        return self._graph.op("MatMul", hidden, self._weights.matrix(label, names))

    def head_product(self, rows: ir.Value, name: str) -> ir.Value:
        """The same for the output layer; in floats a tied embedding table serves."""
        if self._precision in ("fp32", "fp16"):
            return self._graph.op("Gemm", rows, self._weights.table(name), transB=1)
        return self.product(rows, "lm_head", [name])

    def _int4_product(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        return self._turned_product(hidden, self._blocks(label, names))

    def _turned_product(self, hidden: ir.Value, matrix: ir.Value) -> ir.Value:
        turned = self._graph.op("Transpose", matrix, perm=[1, 0])
        return self._graph.op("MatMul", hidden, turned)

    def _blocks(self, label: str, names: Sequence[str]) -> ir.Value:
        """[out, in] of 4-bit blocks along the inputs."""
        num_out, num_in = self._weights.shape(names)
        if num_in % GRID.block_size:
            raise ModelError(
                f"{label} has {num_in} inputs, no multiple of TensorRT's int4 blocks of "
                f"{GRID.block_size}; choose PRECISION=fp16"
            )
        scales: list[Float32Array] = []
        packed = self._graph.weight(
            f"{label}.weight_int4",
            ir.DataType.INT4,
            (num_out, num_in),
            self._packed(label, names, scales),
        )
        scale = self._scales(label, np.concatenate(scales))
        return self._graph.op("DequantizeLinear", packed, scale, axis=1, block_size=GRID.block_size)

    def _packed(
        self, label: str, names: Sequence[str], scales: list[Float32Array]
    ) -> Iterator[np.ndarray]:
        """Pieces of two values to a byte; their scales [n, blocks] are appended to `scales`."""
        spread = None
        if label in self._moments:
            spread = ErrorSpread.of(self._moments[label], GRID)
        for chunk in self._weights.chunks(names):
            if spread is None:
                packed, chunk_scales = quantize_int4(chunk, GRID)
            else:
                packed, chunk_scales = quantize_int4_for(chunk, spread)
            scales.append(chunk_scales)
            yield packed ^ np.uint8(SIGNED)

    def _eight_bit_product(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        graph, kind = self._graph, EIGHT_BITS[self._precision]
        if label.endswith(kind.float_inputs):
            plain = np.ones(self._weights.shape(names)[1], np.float32)
            return self._turned_product(hidden, self._channels(label, names, kind, plain))
        if label not in self._ranges:
            raise ModelError(
                f"{self._precision} needs the range of what {label} reads; calibrate, or choose "
                "PRECISION=int4 or fp16"
            )
        smooth = smoothing(self._ranges[label], self._weights.chunks(names), kind.most, kind.alpha)
        if kind.alpha:
            hidden = graph.op("Mul", hidden, self._inverse(label, smooth))
        scale = graph.constant(smooth.input_scale, self._compute.numpy())
        zero = graph.constant(0, kind.dtype.numpy())
        hidden = graph.op("QuantizeLinear", hidden, scale, zero)
        hidden = graph.op("DequantizeLinear", hidden, scale)
        return self._turned_product(hidden, self._channels(label, names, kind, smooth.factors))

    def _inverse(self, label: str, smooth: Smoothing) -> ir.Value:
        inverse = (1 / smooth.factors).astype(self._compute.numpy())
        return self._graph.weight(f"{label}.smoothing", self._compute, inverse.shape, [inverse])

    def _channels(
        self, label: str, names: Sequence[str], kind: EightBits, factors: Float32Array
    ) -> ir.Value:
        """[out, in] of 8-bit values, columns times `factors` [in], a scale for each output."""
        scales: list[Float32Array] = []
        values = self._graph.weight(
            f"{label}.weight_{self._precision}",
            kind.dtype,
            self._weights.shape(names),
            self._rounded(names, kind, factors, scales),
        )
        scale = self._scales(label, np.concatenate(scales))
        return self._graph.op("DequantizeLinear", values, scale, axis=0)

    def _rounded(
        self,
        names: Sequence[str],
        kind: EightBits,
        factors: Float32Array,
        scales: list[Float32Array],
    ) -> Iterator[np.ndarray]:
        """Pieces as bytes; their scales [n] are appended to `scales`."""
        for chunk in self._weights.chunks(names):
            smoothed = chunk * factors
            scale = scale_of(np.abs(smoothed).max(-1), kind.most)
            scales.append(scale)
            values = np.clip(smoothed / scale[:, None], -kind.most, kind.most)
            if kind.dtype == ir.DataType.INT8:
                values = np.rint(values)
            yield values.astype(kind.dtype.numpy()).view(np.uint8)

    def _scales(self, label: str, scales: Float32Array) -> ir.Value:
        stored = scales.astype(self._compute.numpy())
        return self._graph.weight(f"{label}.scales", self._compute, stored.shape, [stored])
