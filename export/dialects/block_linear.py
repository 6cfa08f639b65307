"""Linear layers of 4-bit blocks, by ONNX Runtime's MatMulNBits."""

from collections.abc import Sequence

import onnx_ir as ir

from bita.export.onnx.decoder_weights import DecoderWeights
from bita.export.onnx.writer import FLOAT, MICROSOFT, UINT8, GraphWriter
from bita.export.quantization.gptq import Moments, int4_pieces
from bita.export.quantization.int4 import BLOCK_SIZE, Int4Grid

INT8_ACTIVATIONS = 4  # an accuracy_level: 3 times as fast as float activations on AVX2


class BlockLinear:
    """Writes products of activations and weights, in the type of the scales.

    Args:
        graph: The graph.
        weights: The weights of the checkpoint.
        moments: Second moments of the inputs by label, for which weights are rounded; without them
            weights are rounded to the nearest values.
        scale_type: The type of scales and activations.
        accuracy_level: An attribute of the operator; 0 computes in the activations' own type.
    """

    def __init__(
        self,
        graph: GraphWriter,
        weights: DecoderWeights,
        moments: Moments | None = None,
        scale_type: ir.DataType = FLOAT,
        accuracy_level: int = INT8_ACTIVATIONS,
    ) -> None:
        self._graph = graph
        self._weights = weights
        self._moments: Moments = moments or {}
        self._scale_type = scale_type
        self._grid = Int4Grid(scale_type=scale_type.numpy())
        self._accuracy_level = accuracy_level

    def product(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        """See `Linear`."""
        num_out, num_in = self._weights.shape(names)
        num_blocks = -(-num_in // BLOCK_SIZE)
        packed, scales = self._graph.scaled_weight(
            f"{label}.weight_int4",
            UINT8,
            (num_out, num_blocks, BLOCK_SIZE // 2),
            int4_pieces(self._weights.chunks(names), self._moments, label, self._grid),
        )
        return self._graph.op(
            "MatMulNBits",
            hidden,
            packed,
            self._weights.scales(label, names, scales.reshape(-1), self._scale_type),
            domain=MICROSOFT,
            K=num_in,
            N=num_out,
            bits=4,
            block_size=BLOCK_SIZE,
            accuracy_level=self._accuracy_level,
        )
