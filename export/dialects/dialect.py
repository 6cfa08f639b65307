"""What the decoder asks of the operators it is written in."""

from collections.abc import Sequence
from typing import Protocol

import onnx_ir as ir

from bita.export.architecture import Layer
from bita.export.onnx.decoder_weights import DecoderWeights
from bita.export.onnx.visibility import StepInputs
from bita.export.onnx.writer import GraphWriter


class Dialect(Protocol):
    """Parts of a decoder as operators of one runtime.

    The residual stream, the inputs of norms and the logits are float32 in every dialect. The input
    and the product of each linear layer are named LABEL.input and LABEL.output.
    """

    graph: GraphWriter
    weights: DecoderWeights

    def place(self, inputs: StepInputs) -> None:
        """Compute what every attention of a step shares, before the first of them."""

    def embed(self, name: str, token_ids: ir.Value) -> ir.Value:
        """Rows of the embedding table, as float32."""

    def norm(self, hidden: ir.Value, weight: ir.Value) -> ir.Value:
        """RMSNorm over the last axis."""

    def add_norm(
        self, residual: ir.Value, delta: ir.Value, weight: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """norm(residual + delta) and residual + delta."""

    def linear(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        """hidden times the weights of `names` ([out, in] each), their outputs side by side."""

    def as_residual(self, delta: ir.Value) -> ir.Value:
        """What a linear layer gave, as float32."""

    def add_lora(
        self,
        product: ir.Value,
        hidden: ir.Value,
        down: ir.Value,
        up: ir.Value,
        first: ir.Value,
        is_attended: bool,
    ) -> ir.Value:
        """product [1, Q, out] with hidden @ down @ up added in the rows from `first` [1] on.

        down: [in, r], up: [r, out], float32. The rows before keep their bits. is_attended: whether
        the result holds keys and values. These have to be finite numbers, whatever LoRA holds:
        rows that do not see them weigh them with zero.
        """

    def activation(self, gate: ir.Value) -> ir.Value:
        """The activation function of the gated MLP."""

    def attention(self, qkv: ir.Value, index: int, layer: Layer) -> ir.Value:
        """Attention over the cache and the step's rows [1, Q, heads * D]; appends K and V."""

    def head(self, rows: ir.Value, name: str) -> ir.Value:
        """Logits [R, V], float32, of rows [R, hidden]."""
