"""The losses of mask rows from their last states, without holding the logits of all rows.

Logits of a batch are rows times vocabulary, and a loss makes several arrays of that size: on a CPU
their memory costs more time than their arithmetic. A row's loss depends on no other row, so the
output layer runs forward and backward for some rows at a time.
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

LOGITS_AT_ONCE = 4 << 20  # 16 MB each in float32, measured on CPUs; a GPU gets four times as many


@dataclass(frozen=True)
class FlatRows:
    """All rows of a batch, one after the other; n of them.

    drafts, teacher: last states [n, hidden] of the mask rows, and of the base's rows for the same
    tokens. tokens, before, masks: [n], the token that a row drafts, the one in front of it, and the
    row's mask. directions: [n, hidden], of pair scores, or None.
    """

    drafts: Tensor
    teacher: Tensor
    tokens: Tensor
    before: Tensor
    masks: Tensor
    directions: Tensor | None = None


class RowResults(NamedTuple):
    """Of each row: the loss, and how probable its draft holds the token that came, without
    gradient; both float32 [n]. is_right: whether that token is its best draft, bool [n].
    """

    losses: Tensor
    probabilities: Tensor
    is_right: Tensor


def flatten(
    batch: Sequence[TrainingText], rows: Sequence[MaskRows], context: BaseContext, states: Tensor
) -> FlatRows:
    """Put each mask row beside the base's row for the same token; padding is left out.

    states: [B, R, hidden], of the mask rows.
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
    """The results of each row, with gradients of losses to `rows.drafts` and `rows.directions`;
    `loss` as in settings.

    rows_at_once: 0 for what suits the device.
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
    """`_results`, whose gradients are found in the forward, some rows at a time."""

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
