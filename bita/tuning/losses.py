"""How far the drafts of mask rows are from the base model."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

CE_SHARE = {"kl": 0.0, "mix": 0.5, "ce": 1.0}


def draft_losses(drafts: Tensor, teacher: Tensor, tokens: Tensor, loss: str) -> Tensor:
    """The loss of each row [n], in float32: KL(teacher || draft), cross-entropy, or half of each.

    drafts, teacher: logits [n, V] of the mask rows and of the base's rows for the same token.
    teacher may be anything for loss "ce". tokens: [n], what stands there.
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
    """[n]: how likely each row's draft is looked at: the product of `rights` over the masks before
    it in its group.

    rights: [n], of each row: how sure the draft is of the token that came, or whether it is right.
    masks: [n], group by group. Sources: D-PACE (arXiv 2605.18810), Spec-AUF (2607.01893).
    """
    weights = torch.ones_like(rights)
    for mask in range(1, int(masks.max()) + 1 if len(masks) else 1):
        rows = (masks == mask).nonzero()[:, 0]
        weights[rows] = weights[rows - 1] * rights[rows - 1]
    return weights


def sums_by_mask(losses: Tensor, masks: Tensor, num_masks: int) -> Tensor:
    """[M]: the row losses [n] of each mask added up."""
    return torch.stack([losses[masks == mask].sum() for mask in range(num_masks)])


def decayed_mean(sums: Tensor, counts: Tensor, decay: float) -> Tensor:
    """The mean of row losses, those of mask k weighted by decay**k. sums, counts: [M] by mask."""
    weights = decay ** torch.arange(len(sums), dtype=sums.dtype, device=sums.device)
    return (sums * weights).sum() / (counts * weights).sum()
