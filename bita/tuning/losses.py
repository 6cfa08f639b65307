"""Losses: the distance between the drafts of mask rows and the base model."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

CE_SHARE = {"kl": 0.0, "mix": 0.5, "ce": 1.0}


def draft_losses(drafts: Tensor, teacher: Tensor, tokens: Tensor, loss: str) -> Tensor:
    """Return the loss of each row [n], in float32.

    Args:
        drafts: Logits [n, V] of the mask rows.
        teacher: Logits [n, V] of the base's rows for the same tokens; unused with "ce".
        tokens: The true tokens [n].
        loss: "kl" for KL(teacher || draft), "ce" for cross-entropy, "mix" for half of each.
    """
    drafts = drafts.float()
    share = CE_SHARE[loss]
    total = torch.zeros(len(drafts), device=drafts.device)
    if share < 1:
        log_drafts, log_teacher = log_softmax(drafts, -1), log_softmax(teacher.float(), -1)
        divergence = kl_div(log_drafts, log_teacher, reduction="none", log_target=True).sum(-1)
        total = total + (1 - share) * divergence
    if share > 0:
        total = total + share * cross_entropy(drafts, tokens, reduction="none")
    return total


def reach_weights(rights: Tensor, masks: Tensor) -> Tensor:
    """Return how likely each row's draft is to be reached [n].

    This is the product of `rights` over the earlier masks in the row's group. Sources: D-PACE
    (arXiv 2605.18810), Spec-AUF (2607.01893).

    Args:
        rights: Probability of each row's true token in its draft, or whether the draft is right.
        masks: Mask of each row [n], group by group.
    """
    weights = torch.ones_like(rights)
    for mask in range(1, int(masks.max()) + 1 if len(masks) else 1):
        rows = (masks == mask).nonzero()[:, 0]
        weights[rows] = weights[rows - 1] * rights[rows - 1]
    return weights


def sums_by_mask(losses: Tensor, masks: Tensor, num_masks: int) -> Tensor:
    """Return the sum of the row losses [n] of each mask, [M]."""
    return torch.stack([losses[masks == mask].sum() for mask in range(num_masks)])


def decayed_mean(sums: Tensor, counts: Tensor, decay: float) -> Tensor:
    """Return the mean row loss, weighting mask k by decay**k, from sums and counts [M] by mask."""
    weights = decay ** torch.arange(len(sums), dtype=sums.dtype, device=sums.device)
    return (sums * weights).sum() / (counts * weights).sum()
