"""Linear layers of float weights."""

from collections.abc import Sequence

import onnx_ir as ir

from bita.export.dialects.linear import HEAD_LABEL
from bita.export.onnx.decoder_weights import DecoderWeights
from bita.export.onnx.writer import GraphWriter


class FloatLinear:
    """Writes products in the compute type, whatever type the weights are stored in."""

    def __init__(self, graph: GraphWriter, weights: DecoderWeights) -> None:
        self._graph = graph
        self._weights = weights

    def product(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        """See `Linear`. The output layer uses its table, which may be the embedding table."""
        weights = self._weights
        if label == HEAD_LABEL:
            table = weights.as_compute(weights.table(*names))
            return self._graph.op("Gemm", hidden, table, transB=1)
        matrix = weights.as_compute(weights.matrix(label, names))
        return self._graph.op("MatMul", hidden, matrix)
