"""The losses of mask rows from their last states, without holding the logits of all rows.

Logits of a batch are rows times vocabulary, and a loss makes several arrays of that size: on a CPU
their memory costs more time than their arithmetic. A row's loss depends on no other row, so the
output layer runs forward and backward for some rows at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    tokens. tokens, masks: [n].
    """

    drafts: Tensor
    teacher: Tensor
    tokens: Tensor
    masks: Tensor


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
    masks = np.concatenate([r.masks for r in rows])
    return FlatRows(
        states[text_index, row_index],
        context.states[text_index, teacher_index],
        torch.from_numpy(tokens).to(states.device),
        torch.from_numpy(masks).to(states.device),
    )


def row_losses(model: MaskModel, rows: FlatRows, loss: str, rows_at_once: int = 0) -> Tensor:
    """The loss of each row [n], float32, with gradients to `rows.drafts`; `loss` as in settings.

    rows_at_once: 0 for what suits the device.
    """
    num_rows = len(rows.tokens)
    if not rows_at_once:
        on_cpu = rows.drafts.device.type == "cpu"
        logits = LOGITS_AT_ONCE if on_cpu else 4 * LOGITS_AT_ONCE
        rows_at_once = max(1, logits // model.vocab_size)
    if rows_at_once >= num_rows:
        return _losses(model, rows.drafts, rows.teacher, rows.tokens, loss)
    losses: Tensor = _RowLosses.apply(
        rows.drafts, rows.teacher, rows.tokens, model, loss, rows_at_once
    )
    return losses


def _losses(model: MaskModel, drafts: Tensor, teacher: Tensor, tokens: Tensor, loss: str) -> Tensor:
    with torch.no_grad():
        taught = model.output_logits(teacher[None])[0] if loss != "ce" else teacher
    return draft_losses(model.output_logits(drafts[None])[0], taught, tokens, loss)


class _RowLosses(torch.autograd.Function):
    """`_losses`, whose gradient is found in the forward, some rows at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        drafts: Tensor,
        teacher: Tensor,
        tokens: Tensor,
        model: MaskModel,
        loss: str,
        rows_at_once: int,
    ) -> Tensor:
        gradients = torch.empty_like(drafts)
        losses = torch.empty(len(tokens), device=drafts.device)
        for piece in torch.arange(len(tokens), device=drafts.device).split(rows_at_once):
            with torch.enable_grad():
                own = drafts[piece].detach().requires_grad_()
                found = _losses(model, own, teacher[piece], tokens[piece], loss)
                (gradients[piece],) = torch.autograd.grad(found.sum(), own)
            losses[piece] = found.detach()
        ctx.save_for_backward(gradients)
        return losses

    @staticmethod
    def backward(ctx: Any, *of_losses: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return (of_losses[0][:, None].to(gradients.dtype) * gradients, *5 * (None,))
