"""The step graph in native operators (domain `bita`) for CPUs, two for each layer.

Values between operators have the rows of the step as their first axis, [Q, ..]. The caches are
pages of 16 slots, addressed by page lists, so that rows of several texts can share a step.

Inputs:

- token_ids [1, Q]; ids >= V are mask tokens
- mask_embeddings [M, hidden]
- the placement of the rows (`NativeInputs`)
- output_rows [R] and wants_logits [1]
- past.{l}.pages [pages, H, 2, 16 * D], the caches

Outputs:

- top_ids and top_logits [R, k]
- logits [R, V], or [0, V] unless they are wanted
- present.{l}.pages, the caches updated in place

LoRA has an input for each side of a site, with the slices of all layers (`bita.packed_lora`), and
first_mask_row [1]. The residual sums after the two sublayers of a layer are named SUBLAYER.sum, as
in other dialects.
"""

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from bita.engine import OPERATORS, OPERATORS_VERSION, PAGE_SLOTS
from bita.export.architecture import Architecture, Layer
from bita.export.dialects.decoder import FINAL_NORM, LABELS, MLP_NORM, SUM
from bita.export.dialects.graph_options import GraphOptions
from bita.export.dialects.native_linear import BlockWeight, NativeWeights
from bita.export.onnx.decoder_weights import DecoderWeights
from bita.export.onnx.writer import BOOL, FLOAT, FLOAT16, INT64, GraphWriter
from bita.lora import SITES
from bita.packed_lora import packed_shapes
from bita.tensors import EMBEDDINGS, HEAD

DOMAIN = "bita"
NATIVE_OPSETS = {"": 21, DOMAIN: 1}
CACHE_TYPES = {"float16": FLOAT16, "float32": FLOAT}


@dataclass(frozen=True)
class NativeInputs:
    """Inputs that place the rows of a step."""

    positions: ir.Value  # [1, Q], position of each row in its text
    row_slots: ir.Value  # [Q], the slot that each row is written to
    row_texts: ir.Value  # [Q], the text that each row belongs to
    sees: ir.Value  # [Q, Q], whether row i attends to row j
    sees_prefix: ir.Value  # [Q], whether each row attends to the prefix
    text_lengths: ir.Value  # [T], filled slots of each text
    text_pages: ir.Value  # [T, W], the pages of each text
    prefix_pages: ir.Value  # [X], the pages of the prefix
    prefix_length: ir.Value  # [1], slots of the prefix

    @classmethod
    def declare(cls, graph: GraphWriter) -> "NativeInputs":
        """Declare the inputs in a graph."""
        return cls(
            positions=graph.input("positions", INT64, (1, "Q")),
            row_slots=graph.input("row_slots", INT64, ("Q",)),
            row_texts=graph.input("row_texts", INT64, ("Q",)),
            sees=graph.input("sees", BOOL, ("Q", "Q")),
            sees_prefix=graph.input("sees_prefix", BOOL, ("Q",)),
            text_lengths=graph.input("text_lengths", INT64, ("T",)),
            text_pages=graph.input("text_pages", INT64, ("T", "W")),
            prefix_pages=graph.input("prefix_pages", INT64, ("X",)),
            prefix_length=graph.input("prefix_length", INT64, (1,)),
        )

    def in_order(self) -> tuple[ir.Value, ...]:
        """Return the inputs in the order of the operator Sights."""
        return (
            *(self.positions, self.row_slots, self.row_texts, self.sees, self.sees_prefix),
            *(self.text_lengths, self.text_pages, self.prefix_pages, self.prefix_length),
        )


class NativeDecoder:
    """The transformer, written in operators of the domain `bita`."""

    def __init__(
        self,
        graph: GraphWriter,
        weights: DecoderWeights,
        blocks: NativeWeights,
        architecture: Architecture,
        options: GraphOptions,
    ) -> None:
        self._graph = graph
        self._weights = weights
        self._blocks = blocks
        self._architecture = architecture
        self._options = options
        self._first_mask_row: ir.Value | None = None

    def write(self) -> None:
        """Write inputs, layers and outputs."""
        graph = self._graph
        graph.metadata[OPERATORS] = OPERATORS_VERSION
        token_ids = graph.input("token_ids", INT64, (1, "Q"))
        hidden = self._embed(token_ids)
        self._inputs = NativeInputs.declare(graph)
        output_rows = graph.input("output_rows", INT64, ("R",))
        wants_logits = graph.input("wants_logits", BOOL, (1,))
        if self._options.with_lora:
            self._first_mask_row = graph.input("first_mask_row", INT64, (1,))
        self._lora: dict[str, tuple[ir.Value | None, ir.Value | None]] = {}
        self._sights: dict[int, ir.Value] = {}
        for index, layer in enumerate(self._architecture.layers):
            hidden = self._mlp(index, self._attention(index, layer, hidden))
        weight = self._weights.norm(FINAL_NORM, self._architecture.logit_scale)
        epsilon = float(self._architecture.norm_eps)
        rows = self._op("AddNorm", hidden, None, weight, None, output_rows, epsilon=epsilon)
        head = EMBEDDINGS if self._architecture.tied_embeddings else HEAD
        self._head(rows, self._blocks.table(head), wants_logits)

    def _embed(self, token_ids: ir.Value) -> ir.Value:
        """Return rows of the table or of the adapter's mask embeddings, [Q, hidden]."""
        arch, table = self._architecture, self._blocks.table(EMBEDDINGS)
        masks = self._graph.input("mask_embeddings", FLOAT, ("M", arch.hidden_size))
        return self._op(
            "Embed",
            *(token_ids, masks, *_parts(table)),
            bits=table.bits,
            hidden_size=arch.hidden_size,
            vocab_size=arch.vocab_size,
            scale=float(arch.embedding_scale),
        )

    def _attention(self, index: int, layer: Layer, hidden: ir.Value) -> ir.Value:
        """Write an attention sublayer, which appends K and V to the pages; return [Q, hidden]."""
        graph, arch, weights = self._graph, self._architecture, self._weights
        dtype = CACHE_TYPES[self._options.cache_type]
        shape = ("pages", arch.num_kv_heads, 2, PAGE_SLOTS * arch.head_dim)
        past = graph.input(f"past.{index}.pages", dtype, shape)
        rope = weights.rope(layer.rope, self._options.capacity) if layer.rope else (None, None)
        norms = self._norms(index, "input_layernorm", "post_attention_layernorm")
        qkv, qkv_bits = self._linear(index, "qkv")
        o, o_bits = self._linear(index, "o")
        inputs = (
            *(hidden, *norms, *qkv, self._sights_of(layer.window or 0), past),
            *(*rope, *self._head_norms(index), *o, self._first_mask_row),
        )
        total, present = ir.Value(name=f"model.layers.{index}.self_attn{SUM}"), ir.Value()
        graph.op_into(
            "AttentionSublayer",
            _strip_absent(inputs),
            (total, present),
            domain=DOMAIN,
            num_heads=arch.num_heads,
            kv_num_heads=arch.num_kv_heads,
            head_dim=arch.head_dim,
            scale=float(arch.attention_scale),
            softcap=float(arch.attention_softcap),
            layer=index,
            qkv_bits=qkv_bits,
            o_bits=o_bits,
            **self._residual(),
        )
        graph.output(f"present.{index}.pages", present, dtype, shape)
        return total

    def _mlp(self, index: int, hidden: ir.Value) -> ir.Value:
        """Write an MLP sublayer; return [Q, hidden]."""
        arch = self._architecture
        before = "pre_feedforward_layernorm" if arch.sandwich_norms else MLP_NORM
        norms = self._norms(index, before, "post_feedforward_layernorm")
        gate_up, gate_up_bits = self._linear(index, "gate_up")
        down, down_bits = self._linear(index, "down")
        total = self._op(
            "MlpSublayer",
            *(hidden, *norms, *gate_up, *down, self._first_mask_row),
            intermediate_size=arch.intermediate_size,
            activation=arch.activation,
            layer=index,
            gate_up_bits=gate_up_bits,
            down_bits=down_bits,
            **self._residual(),
        )
        total.name = f"model.layers.{index}.mlp{SUM}"
        return total

    def _residual(self) -> dict[str, Any]:
        """Return the attributes that both sublayers share."""
        arch = self._architecture
        return {
            "hidden_size": arch.hidden_size,
            "epsilon": float(arch.norm_eps),
            "residual_scale": float(arch.residual_scale),
        }

    def _norms(self, index: int, before: str, after: str) -> tuple[ir.Value, ir.Value | None]:
        """Return the weights of the norms before and, in some families, after a sublayer."""
        prefix = f"model.layers.{index}"
        has_post = self._architecture.sandwich_norms
        return (
            self._weights.norm(f"{prefix}.{before}.weight"),
            self._weights.norm(f"{prefix}.{after}.weight") if has_post else None,
        )

    def _sights_of(self, window: int) -> ir.Value:
        """Return what the rows see through a window (0: none), shared by all layers with it."""
        arch = self._architecture
        if window not in self._sights:
            group = arch.num_heads // arch.num_kv_heads
            self._sights[window] = self._op(
                "Sights", *self._inputs.in_order(), group=group, window=window
            )
        return self._sights[window]

    def _linear(self, index: int, site: str) -> tuple[tuple[ir.Value | None, ...], int]:
        """Return a sublayer's inputs for the linear layers of a site, and the bits of the weights.

        The outputs of the layers are concatenated; LoRA applies to the mask rows.
        """
        label, names = _site(index, site)
        if site == "gate_up":
            gate, up = names
            weight = self._blocks.gated_weight(label, gate, up)
        else:
            weight = self._blocks.weight(label, names)
        num_out, num_in = self._weights.shape(names)
        bias = self._weights.bias(label, names)
        return (*_parts(weight), bias, *self._lora_of(site, num_in, num_out)), weight.bits

    def _lora_of(
        self, site: str, num_in: int, num_out: int
    ) -> tuple[ir.Value | None, ir.Value | None]:
        """Return the LoRA matrices of a site for all layers, or None in a graph without LoRA."""
        if self._first_mask_row is None:
            return None, None
        if site not in self._lora:
            num_layers = len(self._architecture.layers)
            down, up = packed_shapes(site, num_layers, num_in, num_out, "r")
            self._lora[site] = (
                self._graph.input(f"lora.{site}.down", FLOAT16, down),
                self._graph.input(f"lora.{site}.up", FLOAT16, up),
            )
        return self._lora[site]

    def _head_norms(self, index: int) -> tuple[ir.Value | None, ir.Value | None]:
        """Return the norms of queries and keys, or None if the family has none."""
        if not self._architecture.qk_norm:
            return None, None
        prefix = f"model.layers.{index}.self_attn"
        return (
            self._weights.norm(f"{prefix}.q_norm.weight"),
            self._weights.norm(f"{prefix}.k_norm.weight"),
        )

    def _head(self, rows: ir.Value, weight: BlockWeight, wants_logits: ir.Value) -> None:
        graph, arch, num_ranks = self._graph, self._architecture, self._options.num_ranks
        top_ids, top_logits, logits = graph.ops(
            "Head",
            *(rows, *_parts(weight), wants_logits),
            num_outputs=3,
            domain=DOMAIN,
            bits=weight.bits,
            in_features=arch.hidden_size,
            out_features=arch.vocab_size,
            num_ranks=num_ranks,
            softcap=float(arch.logit_softcap),
        )
        graph.output("top_ids", top_ids, INT64, ("R", num_ranks))
        graph.output("top_logits", top_logits, FLOAT, ("R", num_ranks))
        graph.output("logits", logits, FLOAT, ("rows", arch.vocab_size))

    def _op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self._graph.op(op_type, *_strip_absent(inputs), domain=DOMAIN, **attributes)


def _site(index: int, site: str) -> tuple[str, list[str]]:
    """Return the label of a site's weights, and the names of its linear layers."""
    prefix = f"model.layers.{index}."
    return f"{prefix}{LABELS[site]}", [f"{prefix}{layer}.weight" for layer in SITES[site]]


def _parts(weight: BlockWeight) -> tuple[ir.Value | None, ...]:
    return weight.values, weight.scales, weight.minima


def _strip_absent(inputs: tuple[ir.Value | None, ...]) -> tuple[ir.Value | None, ...]:
    """Remove absent optional inputs from the end."""
    while inputs and inputs[-1] is None:
        inputs = inputs[:-1]
    return inputs
