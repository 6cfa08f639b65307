"""The step graph: one forward pass of the decoder over the rows of a prefill or decode step.

Inputs:

- token_ids [1, Q]; ids >= V are mask tokens
- mask_embeddings [M, hidden]
- the placement of the rows (`StepInputs`)
- output_rows [R], the rows whose tokens are wanted
- past.{l}.key and past.{l}.value [1, H, C, D], the caches

Outputs:

- top_ids [R, k] and top_logits [R, k]; column 0 is the argmax
- logits [R, V], bound only when needed
- present.{l}.key and present.{l}.value, the caches updated in place

With LoRA, the linear layers of a site add the product of their input, lora.{l}.{site}.down [in, r]
and lora.{l}.{site}.up [r, out] in the rows from `first_mask_row` [1] on; earlier rows keep their
bits.
"""

from collections.abc import Mapping

import onnx_ir as ir

from bita.errors import ModelError, raise_faults
from bita.export.architecture import Architecture
from bita.export.checkpoint import Checkpoint
from bita.export.dialects.dialect import Dialect
from bita.export.onnx.top_tokens import top_tokens
from bita.export.onnx.visibility import step_inputs
from bita.export.onnx.writer import FLOAT, INT64
from bita.lora import SITES
from bita.tensors import EMBEDDINGS, HEAD

FINAL_NORM = "model.norm.weight"
SUM = ".sum"  # suffix of the names of the residual sums after a sublayer
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)  # buffers that old checkpoints saved


class Decoder:
    """The transformer, written through a dialect."""

    def __init__(
        self,
        dialect: Dialect,
        architecture: Architecture,
        with_lora: bool = False,
    ) -> None:
        self._dialect = dialect
        self._graph = dialect.graph
        self._architecture = architecture
        self._rows = LoraRows(dialect) if with_lora else None

    def write(self, num_ranks: int, gathers_elements: bool = False) -> None:
        """Write inputs, layers and outputs.

        Args:
            num_ranks: k, the number of best tokens for each row.
            gathers_elements: Whether to gather blocks of logits by GatherElements (`top_tokens`).
        """
        hidden = self._embed()
        self._dialect.place(step_inputs(self._graph))
        output_rows = self._graph.input("output_rows", INT64, ("R",))
        delta: ir.Value | None = None
        for index in range(self._architecture.num_layers):
            hidden, delta = self._layer(index, hidden, delta)
        assert delta is not None
        hidden = self._graph.op("Add", hidden, delta)
        hidden.name = f"model.layers.{self._architecture.num_layers - 1}.mlp{SUM}"
        self._outputs(hidden, output_rows, num_ranks, gathers_elements)

    def _embed(self) -> ir.Value:
        """Return rows of the table or of the adapter's mask embeddings, [1, Q, hidden]."""
        graph, arch = self._graph, self._architecture
        token_ids = graph.input("token_ids", INT64, (1, "Q"))
        masks = graph.input("mask_embeddings", FLOAT, ("M", arch.hidden_size))
        last = graph.constant([arch.vocab_size - 1])
        text = self._dialect.embed(EMBEDDINGS, graph.op("Min", token_ids, last))
        mask_index = graph.op("Sub", token_ids, graph.constant([arch.vocab_size]))
        mask = graph.op("Gather", masks, graph.op("Max", mask_index, graph.constant([0])))
        is_mask = graph.op("GreaterOrEqual", mask_index, graph.constant([0]))
        is_mask = graph.op("Unsqueeze", is_mask, graph.constant([2]))
        return self._scale(graph.op("Where", is_mask, mask, text), arch.embedding_scale)

    def _layer(
        self, index: int, hidden: ir.Value, delta: ir.Value | None
    ) -> tuple[ir.Value, ir.Value]:
        """Write a layer except for its last residual sum, which is fused with the next norm."""
        dialect, arch = self._dialect, self._architecture
        prefix = f"model.layers.{index}"
        weight = dialect.weights.norm(f"{prefix}.input_layernorm.weight")
        if delta is None:
            normed = dialect.norm(hidden, weight)
        else:
            normed, hidden = dialect.add_norm(hidden, delta, weight)
            hidden.name = f"model.layers.{index - 1}.mlp{SUM}"
        delta = self._attention(prefix, index, normed)
        before_mlp = "pre_feedforward_layernorm" if arch.sandwich_norms else MLP_NORM
        weight = dialect.weights.norm(f"{prefix}.{before_mlp}.weight")
        normed, hidden = dialect.add_norm(hidden, delta, weight)
        hidden.name = f"{prefix}.self_attn{SUM}"
        return hidden, self._mlp(index, normed)

    def _attention(self, prefix: str, index: int, normed: ir.Value) -> ir.Value:
        dialect, arch = self._dialect, self._architecture
        qkv = self._linear(normed, index, "qkv")
        attended = dialect.attention(qkv, index, arch.layers[index])
        delta = self._linear(attended, index, "o")
        return self._finish_sublayer(delta, f"{prefix}.post_attention_layernorm.weight")

    def _mlp(self, index: int, normed: ir.Value) -> ir.Value:
        dialect, arch = self._dialect, self._architecture
        both = self._linear(normed, index, "gate_up")
        sizes = self._graph.constant([arch.intermediate_size] * 2)
        gate, up = self._graph.ops("Split", both, sizes, num_outputs=2, axis=-1)
        product = self._graph.op("Mul", dialect.activation(gate), up)
        delta = self._linear(product, index, "down")
        return self._finish_sublayer(
            delta, f"model.layers.{index}.post_feedforward_layernorm.weight"
        )

    def _linear(self, hidden: ir.Value, index: int, site: str) -> ir.Value:
        """Write the linear layers of a site, outputs concatenated, with LoRA on the mask rows."""
        prefix = f"model.layers.{index}."
        names = [f"{prefix}{layer}.weight" for layer in SITES[site]]
        product = self._dialect.linear(hidden, f"{prefix}{LABELS[site]}", names)
        if self._rows is None:
            return product
        shape = self._dialect.weights.shape(names)
        label = f"lora.{index}.{site}"
        return self._rows.add(product, hidden, label, shape, is_attended=site == "qkv")

    def _finish_sublayer(self, delta: ir.Value, norm_name: str) -> ir.Value:
        """Apply the norm and the scale that some families have before the residual sum."""
        delta = self._dialect.as_residual(delta)
        if self._architecture.sandwich_norms:
            delta = self._dialect.norm(delta, self._dialect.weights.norm(norm_name))
        return self._scale(delta, self._architecture.residual_scale)

    def _outputs(
        self, hidden: ir.Value, output_rows: ir.Value, num_ranks: int, by_elements: bool
    ) -> None:
        graph, arch = self._graph, self._architecture
        flat = graph.op("Squeeze", hidden, graph.constant([0]))
        rows = graph.op("Gather", flat, output_rows)
        weight = self._dialect.weights.norm(FINAL_NORM, arch.logit_scale)
        head = EMBEDDINGS if arch.tied_embeddings else HEAD
        logits = self._dialect.head(self._dialect.norm(rows, weight), head)
        if arch.logit_softcap:
            cap = graph.constant(arch.logit_softcap, "float32")
            logits = graph.op("Mul", graph.op("Tanh", graph.op("Div", logits, cap)), cap)
        values, ids = top_tokens(graph, logits, arch.vocab_size, num_ranks, by_elements)
        graph.output("top_ids", ids, INT64, ("R", num_ranks))
        graph.output("top_logits", values, FLOAT, ("R", num_ranks))
        graph.output("logits", logits, FLOAT, ("R", arch.vocab_size))

    def _scale(self, value: ir.Value, scale: float) -> ir.Value:
        if scale == 1.0:
            return value
        return self._graph.op("Mul", value, self._graph.constant(scale, "float32"))


class LoraRows:
    """LoRA on the mask rows of a step, which are its last rows."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._first = dialect.graph.input("first_mask_row", INT64, (1,))

    def add(
        self,
        product: ir.Value,
        hidden: ir.Value,
        label: str,
        shape: tuple[int, int],
        is_attended: bool,
    ) -> ir.Value:
        """Declare the inputs of a site and add hidden @ down @ up to the mask rows of `product`.

        `product` is [1, Q, out] and `shape` is (out, in). See `Dialect.add_lora`.
        """
        graph, (num_out, num_in) = self._dialect.graph, shape
        down = graph.input(f"{label}.down", FLOAT, (num_in, "r"))
        up = graph.input(f"{label}.up", FLOAT, ("r", num_out))
        return self._dialect.add_lora(product, hidden, down, up, self._first, is_attended)


LABELS = {
    "qkv": "self_attn.qkv_proj",
    "o": "self_attn.o_proj",
    "gate_up": "mlp.gate_up_proj",
    "down": "mlp.down_proj",
}
MLP_NORM = "post_attention_layernorm"  # Llama's name for the norm before the MLP


def check_tensors(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Check that the tensors of a checkpoint are those of an architecture.

    A tensor that the graph would leave out belongs to a feature that the graph does not have.

    Raises:
        ModelError: if a tensor is missing, has a wrong shape or is not used by the graph; the error
            lists all of them.
    """
    expected = expected_shapes(architecture)
    present = checkpoint.names()
    faults = [_missing(name) for name in sorted(expected.keys() - present)]
    faults += [
        f"tensor {name} has shape {checkpoint.shape(name)}, expected {shape}"
        for name, shape in expected.items()
        if name in present and checkpoint.shape(name) != shape
    ]
    biases = bias_shapes(architecture)
    faults += _bias_faults(checkpoint, architecture, biases)
    known = expected.keys() | biases.keys()
    faults += [
        f"tensor {name} belongs to a feature that is not supported"
        for name in sorted(present - known)
        if not name.endswith(IGNORED_SUFFIXES)
    ]
    raise_faults(ModelError, checkpoint.name, faults)


def _missing(name: str) -> str:
    if name == HEAD:
        return (
            f"tensor {name} is missing, and tie_word_embeddings is false, so the embeddings do not "
            "replace it"
        )
    return f"tensor {name} is missing"


def _bias_faults(
    checkpoint: Checkpoint, architecture: Architecture, biases: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Return faults of biases: a linear layer must have one in all decoder layers, or in none."""
    present = checkpoint.names()
    faults = []
    for layer in architecture.biases:
        names = [name for name in biases if name.endswith(f"{layer}.bias")]
        if any(name in present for name in names):
            faults += [f"tensor {name} is missing" for name in names if name not in present]
    return faults + [
        f"tensor {name} has shape {checkpoint.shape(name)}, expected {shape}"
        for name, shape in biases.items()
        if name in present and checkpoint.shape(name) != shape
    ]


def bias_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every bias that the graph would use."""
    shapes = expected_shapes(arch)
    names = [
        f"model.layers.{index}.{layer}" for index in range(arch.num_layers) for layer in arch.biases
    ]
    return {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in names}


def linears(names: "dict[str, tuple[int, ...]]") -> list[str]:
    """Return the names of the linear layers of decoder layers."""
    return [name for name in names if name.endswith("_proj.weight")]


def expected_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight that the graph uses."""
    hidden, inner = arch.hidden_size, arch.intermediate_size
    queries, keys = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    layer = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    if arch.sandwich_norms:
        layer |= {"pre_feedforward_layernorm": (hidden,), "post_feedforward_layernorm": (hidden,)}
    if arch.qk_norm:
        layer |= dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), (arch.head_dim,))
    shapes = {EMBEDDINGS: (arch.vocab_size, hidden), FINAL_NORM: (hidden,)}
    if not arch.tied_embeddings:
        shapes[HEAD] = (arch.vocab_size, hidden)
    for index in range(arch.num_layers):
        shapes |= {f"model.layers.{index}.{part}.weight": shape for part, shape in layer.items()}
    return shapes
