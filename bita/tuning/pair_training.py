"""Training of pair scores on the drafts of tuned masks, to predict which follows the token before.

There is no backward pass through the base. The drafts of each group are collected once, with the
true tokens; then a bilinear score of embeddings learns to rank the true draft first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bita.pairs import Pairs
from bita.progress import OnProgress, ignore_progress
from bita.tuning.evaluation import Drafts, text_drafts
from bita.tuning.mask_model import AdapterParameters, MaskModel
from bita.tuning.training_texts import TrainingText

RATE, WEIGHT_DECAY = 3e-3, 0.01
BATCH, STEPS, CHECK_EVERY = 512, 1500, 50
KEPT_OUT = 8  # one text in 8 is held out of the training to choose the best step


@dataclass(frozen=True)
class PairExamples:
    """Masks that have the true token among their drafts; n of them."""

    before: Tensor  # [n]: the token before the draft
    drafts: Tensor  # [n, k]
    logits: Tensor  # [n, k]
    true: Tensor  # [n]: index of the true draft


def tune_pairs(
    model: MaskModel,
    parameters: AdapterParameters,
    texts: Sequence[TrainingText],
    rank: int,
    seed: int,
    on_progress: OnProgress = ignore_progress,
) -> Pairs:
    """Train pair scores for tuned masks; empty if they do not help on held-out texts.

    `on_progress` is called with "pair scores", the number of texts read, and that of all texts.
    """
    kept: tuple[list[Drafts], list[Drafts]] = ([], [])
    for number, text in enumerate(texts):
        kept[number % KEPT_OUT == 0].append(text_drafts(model, parameters, text))
        on_progress("pair scores", number + 1, len(texts))
    train, check = map(pair_examples, kept)
    return fit_pairs(model.embedding_table(), train, check, rank, seed)


def pair_examples(texts: Sequence[Drafts]) -> PairExamples:
    """Collect the examples of all masks in all texts."""
    chosen = []
    for drafts in texts:
        is_true = drafts.token_ids == drafts.true[..., None]
        rows = is_true.any(-1)
        chosen.append(
            (
                drafts.before[rows],
                drafts.token_ids[rows],
                drafts.logits[rows],
                is_true[rows].argmax(-1),
            )
        )
    columns = (torch.from_numpy(np.concatenate(c)) for c in zip(*chosen, strict=True))
    return PairExamples(*columns)


def fit_pairs(
    table: Tensor, train: PairExamples, check: PairExamples, rank: int, seed: int
) -> Pairs:
    """Return the scores of the step that is best on `check`; empty if none beats having no scores.

    `table` [V, hidden] holds the embeddings.
    """
    if not len(train.true) or not len(check.true):
        return {}  # no draft was right
    generator = torch.Generator().manual_seed(seed)
    mean, spread = table.mean(0), table.std()
    normed = (table - mean) / spread
    hidden = table.shape[1]
    left = torch.randn(hidden, rank, generator=generator) * hidden**-0.5
    right, bias = torch.zeros(hidden, rank), torch.zeros(rank)
    weights = [w.to(table.device).requires_grad_() for w in (left, bias, right)]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=WEIGHT_DECAY)
    best_loss, best = _mean_loss(normed, None, check), None
    batch = min(BATCH, len(train.true))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        rows = torch.randint(len(train.true), (batch,), generator=generator)
        optimizer.zero_grad()
        _loss(normed, weights, train, rows).backward()
        optimizer.step()
        if (step + 1) % CHECK_EVERY == 0:
            loss = _mean_loss(normed, weights, check)
            if loss < best_loss:
                best_loss, best = loss, [w.detach().clone() for w in weights]
    if best is None:
        return {}
    left, bias, right = best
    # Fold (e - mean) / spread into both sides; the right mean would add the same to all drafts.
    folded = (left / spread, bias - mean @ left / spread, right / spread)
    arrays = (weight.cpu().numpy() for weight in folded)
    return dict(zip(("pair_left", "pair_bias", "pair_right"), arrays, strict=True))


@torch.no_grad()
def _mean_loss(normed: Tensor, weights: Sequence[Tensor] | None, examples: PairExamples) -> float:
    """Return the mean loss of all examples, computed in batches to bound the memory."""
    pieces = torch.arange(len(examples.true)).split(BATCH)
    total = sum(len(rows) * float(_loss(normed, weights, examples, rows)) for rows in pieces)
    return total / len(examples.true)


def _loss(
    normed: Tensor, weights: Sequence[Tensor] | None, examples: PairExamples, rows: Tensor
) -> Tensor:
    """Return the mean cross-entropy of true drafts among their masks' drafts; None: no scores."""
    device = normed.device
    logits = examples.logits[rows].to(device)
    if weights is not None:
        left, bias, right = weights
        before = normed[examples.before[rows].to(device)] @ left + bias
        after = normed[examples.drafts[rows].to(device)] @ right
        logits = logits + (after @ before[:, :, None])[..., 0]
    return cross_entropy(logits, examples.true[rows].to(device))
