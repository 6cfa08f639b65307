"""Losses of mask rows from their last states, without storing the logits of all rows.

A batch has rows times vocabulary logits, and a loss needs several arrays of that size. On a CPU,
memory traffic takes more time than the arithmetic. A row's loss does not depend on other rows, so
the output layer runs forward and backward for some rows at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bita.tuning.losses import draft_losses
from bita.tuning.mask_model import BaseContext, MaskModel
from bita.tuning.mask_rows import MaskRows
from bita.tuning.training_texts import TrainingText

LOGITS_AT_ONCE = 4 << 20  # 16 MB per float32 array, tuned on CPUs; GPUs use four times as many


@dataclass(frozen=True)
class FlatRows:
    """All rows of a batch, one after the other; n of them."""

    drafts: Tensor  # [n, hidden]: last states of the mask rows
    teacher: Tensor  # [n, hidden]: last states of the base's rows for the same tokens
    tokens: Tensor  # [n]: the token that a row drafts
    before: Tensor  # [n]: the token before it
    masks: Tensor  # [n]: the row's mask
    directions: Tensor | None = None  # [n, hidden]: directions of pair scores; None for none


class RowResults(NamedTuple):
    """Results of each row."""

    losses: Tensor  # [n], float32
    probabilities: Tensor  # [n], float32: probability of the true token, without gradient
    is_right: Tensor  # [n], bool: whether the true token is the best draft


def flatten(
    batch: Sequence[TrainingText], rows: Sequence[MaskRows], context: BaseContext, states: Tensor
) -> FlatRows:
    """Pair each mask row with the base's row for the same token, and leave out padding.

    `states` [B, R, hidden] are those of the mask rows.
    """
    text_index = np.concatenate([np.full(len(r.anchors), i) for i, r in enumerate(rows)])
    row_index = np.concatenate([np.arange(len(r.anchors)) for r in rows])
    teacher_index = np.concatenate([r.positions for r in rows]) - context.first
    tokens = np.concatenate(
        [np.asarray(text.token_ids)[r.labels] for text, r in zip(batch, rows, strict=True)]
    )
    before = np.concatenate(
        [np.asarray(text.token_ids)[r.labels - 1] for text, r in zip(batch, rows, strict=True)]
    )
    masks = np.concatenate([r.masks for r in rows])
    return FlatRows(
        states[text_index, row_index],
        context.states[text_index, teacher_index],
        *(torch.from_numpy(each).to(states.device) for each in (tokens, before, masks)),
    )


def row_losses(model: MaskModel, rows: FlatRows, loss: str, rows_at_once: int = 0) -> RowResults:
    """Return the results of each row; losses have gradients to `rows.drafts` and `rows.directions`.

    `loss` is that of the settings. `rows_at_once` is 0 to choose a number for the device.
    """
    num_rows = len(rows.tokens)
    if not rows_at_once:
        on_cpu = rows.drafts.device.type == "cpu"
        logits = LOGITS_AT_ONCE if on_cpu else 4 * LOGITS_AT_ONCE
        rows_at_once = max(1, logits // model.vocab_size)
    if rows_at_once >= num_rows:
        return _results(model, rows.drafts, rows.directions, rows.teacher, rows.tokens, loss)
    found = _RowLosses.apply(
        *(rows.drafts, rows.directions, rows.teacher, rows.tokens), model, loss, rows_at_once
    )
    return RowResults(*found)


def _results(
    model: MaskModel,
    drafts: Tensor,
    directions: Tensor | None,
    teacher: Tensor,
    tokens: Tensor,
    loss: str,
) -> RowResults:
    with torch.no_grad():
        taught = model.output_logits(teacher[None])[0] if loss != "ce" else teacher
    logits = model.draft_logits(drafts, directions)
    losses = draft_losses(logits, taught, tokens, loss)
    with torch.no_grad():
        own = logits.gather(1, tokens[:, None])[:, 0].float()
        probabilities = (own - logits.float().logsumexp(-1)).exp()
        is_right = logits.argmax(-1) == tokens
    return RowResults(losses, probabilities, is_right)


class _RowLosses(torch.autograd.Function):
    """Computes `_results` with its gradients in the forward, for some rows at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        drafts: Tensor,
        directions: Tensor | None,
        teacher: Tensor,
        tokens: Tensor,
        model: MaskModel,
        loss: str,
        rows_at_once: int,
    ) -> tuple[Tensor, ...]:
        given = [tensor for tensor in (drafts, directions) if tensor is not None]
        gradients = [torch.empty_like(tensor) for tensor in given]
        pieces = []
        for piece in torch.arange(len(tokens), device=drafts.device).split(rows_at_once):
            with torch.enable_grad():
                own = [tensor[piece].detach().requires_grad_() for tensor in given]
                scores = own[1] if len(own) > 1 else None
                found = _results(model, own[0], scores, teacher[piece], tokens[piece], loss)
                parts = torch.autograd.grad(found.losses.sum(), own)
            for gradient, part in zip(gradients, parts, strict=True):
                gradient[piece] = part
            pieces.append(RowResults(found.losses.detach(), *found[1:]))
        ctx.save_for_backward(*gradients)
        losses, *others = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        ctx.mark_non_differentiable(*others)
        return losses, *others

    @staticmethod
    def backward(ctx: Any, *of_results: Tensor) -> tuple[Tensor | None, ...]:
        found = [of_results[0][:, None].to(g.dtype) * g for g in ctx.saved_tensors]
        return (*found, *(7 - len(found)) * (None,))
