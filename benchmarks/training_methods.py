"""Two methods to train the same mask rows: our two forwards, and BiTA's joint forward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed
from transformers import DynamicCache

from bita.torch.base_model import masks_by_layer
from bita.tuning.contexts import Contexts
from bita.tuning.losses import decayed_mean, draft_losses, sums_by_mask
from bita.tuning.mask_model import AdapterParameters, MaskModel
from bita.tuning.mask_rows import MaskRows, visibility
from bita.tuning.row_losses import flatten, row_losses
from bita.tuning.training_texts import TrainingText


@dataclass(frozen=True)
class Batch:
    """Texts, and the mask rows to train on them."""

    texts: list[TrainingText]
    rows: list[MaskRows]
    kept: Contexts  # cache of the texts that the base model has read

    @property
    def num_rows(self) -> int:
        return sum(len(rows.anchors) for rows in self.rows)

    def tokens(self) -> np.ndarray:
        """Return the token [n] that each row should draft, text by text."""
        pairs = zip(self.texts, self.rows, strict=True)
        return np.concatenate([np.asarray(t.token_ids)[r.labels] for t, r in pairs])


@dataclass(frozen=True)
class Forward:
    """Result of a step's forward."""

    loss: Tensor
    drafts: Callable[[], Tensor]  # returns the logits [n, V] of the mask rows, text by text


Method = Callable[[MaskModel, AdapterParameters, Batch, float], Forward]


def two_phases(
    model: MaskModel,
    parameters: AdapterParameters,
    batch: Batch,
    decay: float,
    loss: str = "ce",
    kept: bool = False,
) -> Forward:
    """Run the forwards of `Trainer.train_step`: the text without gradients, then the masks.

    With `kept`, the text's result comes from the batch's cache.
    """
    if kept:
        context = batch.kept.read(batch.texts)
    else:
        first = min(text.num_prompt for text in batch.texts)
        context = model.read([text.token_ids for text in batch.texts], first)
    states = model.mask_states(parameters, context, batch.rows)
    flat = flatten(batch.texts, batch.rows, context, states)
    losses = row_losses(model, flat, loss).losses
    return Forward(
        mean_loss(losses, flat.masks, parameters, decay),
        lambda: model.output_logits(flat.drafts[None])[0],
    )


def joint(model: MaskModel, parameters: AdapterParameters, batch: Batch, decay: float) -> Forward:
    """Run text and mask rows in one forward with gradients; the prefix is the past."""
    device, num_texts = model.device, len(batch.texts)
    num_tokens = 1 + max(int(rows.anchors.max()) for rows in batch.rows)
    num_rows = max(len(rows.anchors) for rows in batch.rows)
    embedding = model.base.get_input_embeddings()
    vocab_size = len(embedding.weight)
    ids = np.zeros((num_texts, num_tokens + num_rows), np.int64)
    positions = np.tile(np.arange(num_tokens + num_rows), (num_texts, 1))
    for row, (text, rows) in enumerate(zip(batch.texts, batch.rows, strict=True)):
        kept = text.token_ids[:num_tokens]
        ids[row, : len(kept)] = kept
        end = num_tokens + len(rows.anchors)
        ids[row, num_tokens:end] = vocab_size + rows.masks
        positions[row, num_tokens:end] = rows.positions
    table = torch.cat([embedding.weight, parameters.mask_embeddings.to(model.dtype)])
    looked_up = torch.nn.functional.embedding(torch.from_numpy(ids).to(device), table)
    logits = model.base(
        inputs_embeds=looked_up * getattr(embedding, "embed_scale", 1.0),
        position_ids=torch.from_numpy(positions).to(device),
        attention_mask=joint_mask(model, parameters, batch, num_tokens, num_rows),
        past_key_values=PrefixCache(model, parameters, num_texts),
        use_cache=True,
        logits_to_keep=num_rows,
    ).logits
    drafts = torch.cat([logits[i, : len(r.anchors)] for i, r in enumerate(batch.rows)])
    tokens = torch.from_numpy(batch.tokens()).to(device)
    masks = torch.from_numpy(np.concatenate([rows.masks for rows in batch.rows])).to(device)
    losses = draft_losses(drafts, drafts, tokens, "ce")
    return Forward(mean_loss(losses, masks, parameters, decay), lambda: drafts)


def mean_loss(losses: Tensor, masks: Tensor, parameters: AdapterParameters, decay: float) -> Tensor:
    """Return the loss of a step, with the rows weighted as in training."""
    num_masks = len(parameters.mask_embeddings)
    counts = torch.bincount(masks, minlength=num_masks)
    return decayed_mean(sums_by_mask(losses, masks, num_masks), counts, decay)


def checkpointed(
    model: MaskModel, parameters: AdapterParameters, batch: Batch, decay: float
) -> Forward:
    """Run the joint forward, whose backward recomputes each layer."""
    with recomputed_layers(model.base):
        return joint(model, parameters, batch, decay)


@contextmanager
def recomputed_layers(base: Any) -> Iterator[None]:
    """Make the layers of a model keep only their inputs for the backward inside the block."""
    layers = base.get_decoder().layers
    for layer in layers:
        layer.forward = partial(recomputed, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the instance's attribute, so that the class's method is used again


def joint_mask(
    model: MaskModel, parameters: AdapterParameters, batch: Batch, num_tokens: int, num_rows: int
) -> Any:
    """Return the additive mask [B, 1, T + R, P + T + R].

    Text is causal and does not see the prefix; mask rows see what they usually see.
    """
    prefix_length = parameters.prefix_keys.shape[2]

    def additive(window: int | None) -> Tensor:
        of_masks = visibility(batch.rows, num_rows, num_tokens, prefix_length, window)
        sees = np.zeros((len(batch.rows), num_tokens + num_rows, of_masks.shape[2]), np.bool_)
        sees[:, num_tokens:] = of_masks
        distance = np.arange(num_tokens)[:, None] - np.arange(num_tokens)
        causal = (distance >= 0) & (distance < (window or num_tokens))
        sees[:, :num_tokens, prefix_length : prefix_length + num_tokens] = causal
        hidden = torch.from_numpy(~sees)[:, None].to(model.device)
        mask = torch.zeros(hidden.shape, dtype=model.dtype, device=model.device)
        return mask.masked_fill(hidden, torch.finfo(model.dtype).min)

    return masks_by_layer(model.base.config, additive)


class PrefixCache(DynamicCache):
    """The prefix as the past of every layer, including windowed ones.

    It does not store new keys and values, so that a layer can be recomputed.
    """

    def __init__(self, model: MaskModel, parameters: AdapterParameters, num_texts: int) -> None:
        super().__init__()
        sides = (parameters.prefix_keys, parameters.prefix_values)
        self._prefix = [
            side.to(model.dtype)[:, None].expand(-1, num_texts, -1, -1, -1) for side in sides
        ]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> Any:
        """Return the keys and values of prefix and rows, [B, H, P + R, D] each."""
        given = (key_states, value_states)
        return tuple(
            torch.cat([prefix[layer_idx], rows], dim=2)
            for prefix, rows in zip(self._prefix, given, strict=True)
        )


METHODS: dict[str, Method] = {
    "two phases, kl": partial(two_phases, loss="kl"),
    "two phases, kept texts, kl": partial(two_phases, loss="kl", kept=True),
    "two phases, ce": two_phases,
    "joint, ce": joint,
    "checkpointed, ce": checkpointed,
}
