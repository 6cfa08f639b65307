"""Linear layers for ONNX Runtime's CUDA provider, which multiplies 4-bit blocks by MatMulNBits."""

from collections.abc import Sequence

import onnx_ir as ir

from bita.export.block_linear import BlockLinear
from bita.export.graph import FLOAT16
from bita.export.standard_linear import StandardLinear

CUDA_PRECISIONS = ("fp32", "fp16", "int4")  # it has no products of 8-bit activations


class CudaLinear(StandardLinear):
    """The standard dialect's, but in int4."""

    def _int4_product(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        blocks = BlockLinear(self._graph, self._weights, self._moments, FLOAT16, accuracy_level=0)
        return blocks.product(hidden, label, names)
