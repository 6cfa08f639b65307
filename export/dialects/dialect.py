"""The interface between the decoder and the operators it is written in."""

from collections.abc import Sequence
from typing import Protocol

import onnx_ir as ir

from bita.export.architecture import Layer
from bita.export.onnx.decoder_weights import DecoderWeights
from bita.export.onnx.visibility import StepInputs
from bita.export.onnx.writer import GraphWriter


class Dialect(Protocol):
    """The parts of a decoder, written in operators of one runtime.

    The residual stream, the inputs of norms and the logits are float32 in every dialect. The input
    and the product of each linear layer are named LABEL.input and LABEL.output.
    """

    graph: GraphWriter
    weights: DecoderWeights

    def place(self, inputs: StepInputs) -> None:
        """Write the nodes that all attention layers share, before the first of them."""

    def embed(self, name: str, token_ids: ir.Value) -> ir.Value:
        """Return rows of the embedding table, as float32."""

    def norm(self, hidden: ir.Value, weight: ir.Value) -> ir.Value:
        """Apply RMSNorm over the last axis."""

    def add_norm(
        self, residual: ir.Value, delta: ir.Value, weight: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Return norm(residual + delta), and residual + delta."""

    def linear(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        """Multiply `hidden` by the weights of `names` ([out, in] each); concatenate the outputs."""

    def as_residual(self, delta: ir.Value) -> ir.Value:
        """Convert the output of a linear layer to float32."""

    def add_lora(
        self,
        product: ir.Value,
        hidden: ir.Value,
        down: ir.Value,
        up: ir.Value,
        first: ir.Value,
        is_attended: bool,
    ) -> ir.Value:
        """Add hidden @ down @ up to `product` in the rows from `first` on; others keep their bits.

        Args:
            product: The output of a linear layer, [1, Q, out].
            hidden: The input of the layer.
            down: [in, r], float32.
            up: [r, out], float32.
            first: Index of the first row that gets LoRA, [1].
            is_attended: Whether the result holds keys and values. These must be finite whatever
                LoRA holds, since rows that do not see them weight them with zero.
        """

    def activation(self, gate: ir.Value) -> ir.Value:
        """Apply the activation function of the gated MLP."""

    def attention(self, qkv: ir.Value, index: int, layer: Layer) -> ir.Value:
        """Attend to the cache and the step's rows, and append K and V: [1, Q, heads * D]."""

    def head(self, rows: ir.Value, name: str) -> ir.Value:
        """Return the logits [R, V], float32, of rows [R, hidden]."""
