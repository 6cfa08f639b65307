"""Linear layers for ONNX Runtime's CUDA provider.

It multiplies 4-bit blocks by MatMulNBits. 8 bits are Q/DQ as in the standard dialect: smaller than
float16, but computed in it.
"""

from collections.abc import Sequence

import onnx_ir as ir

from bita.export.dialects.block_linear import BlockLinear
from bita.export.dialects.standard_linear import StandardLinear
from bita.export.onnx.writer import FLOAT16


class CudaLinear(StandardLinear):
    """The standard dialect's, but in int4."""

    def _int4_product(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        blocks = BlockLinear(self._graph, self._weights, self._moments, FLOAT16, accuracy_level=0)
        return blocks.product(hidden, label, names)
