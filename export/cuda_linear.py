"""Linear layers for ONNX Runtime's CUDA provider, which multiplies 4-bit blocks by MatMulNBits."""

from collections.abc import Sequence

import onnx_ir as ir

from bita.export.block_linear import BlockLinear
from bita.export.decoder_weights import DecoderWeights
from bita.export.gptq import Moments
from bita.export.graph import FLOAT16, GraphWriter
from bita.export.smoothing import Ranges
from bita.export.standard_linear import StandardLinear

CUDA_PRECISIONS = ("fp32", "fp16", "int4")  # it has no products of 8-bit activations


class CudaLinear(StandardLinear):
    """The standard dialect's, but in int4."""

    def __init__(
        self,
        graph: GraphWriter,
        weights: DecoderWeights,
        precision: str,
        moments: Moments | None = None,
        ranges: Ranges | None = None,
    ) -> None:
        super().__init__(graph, weights, precision, moments, ranges)
        self._in_blocks = precision == "int4"
        self._block_linear = BlockLinear(graph, weights, moments, FLOAT16, accuracy_level=0)

    def product(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        if self._in_blocks:
            return self._block_linear.product(hidden, label, names)
        return super().product(hidden, label, names)
