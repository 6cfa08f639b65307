"""Pair scores that are trained together with the masks whose drafts they order.

A mask row does not know the token before its draft, but in training the text provides it. The score
of a draft c after token b is

    logit of c + (left(e[b]) + bias) . right(e[c])

so its gradient teaches masks and scores to share the work. Source: DSpark (arXiv 2607.05147), a
low-rank head trained jointly with a drafter, with the token before taken from the text.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bita.pairs import Pairs
from bita.tensors import Float32Array


class JointPairs(torch.nn.Module):
    """left, right [hidden, r] and bias [r], on embeddings of mean 0 and standard deviation 1."""

    def __init__(self, table: Tensor, rank: int, pairs: Pairs, seed: int) -> None:
        """Start from `pairs`, or from scores of 0 if empty; `table` is [V, hidden], float32."""
        super().__init__()
        self._mean, self._spread = table.mean(0).cpu(), float(table.std())
        hidden = table.shape[1]
        if pairs:
            start = {name: torch.from_numpy(array.copy()) for name, array in pairs.items()}
            left, right = start["pair_left"] * self._spread, start["pair_right"] * self._spread
            bias = start["pair_bias"] + self._mean @ start["pair_left"]
        else:
            generator = torch.Generator().manual_seed(seed)
            left = torch.randn(hidden, rank, generator=generator) * hidden**-0.5
            right, bias = torch.zeros(hidden, rank), torch.zeros(rank)
        self.left, self.bias, self.right = map(torch.nn.Parameter, (left, bias, right))

    def directions(self, before: Tensor) -> Tensor:
        """Return the directions [n, hidden] whose product with a draft's embedding is its score.

        Scores lack a constant that is the same for all drafts of a row. `before` [n, hidden] are
        the embeddings of the tokens before the drafts.
        """
        normed = (before - self._mean.to(before.device)) / self._spread
        return (normed @ self.left + self.bias) @ self.right.T / self._spread

    def to_pairs(self) -> Mapping[str, Float32Array]:
        """Return the scores as tensors for embeddings that are not normalized."""
        left, right = self.left.detach().cpu(), self.right.detach().cpu()
        bias = self.bias.detach().cpu() - self._mean @ left / self._spread
        named = {"pair_left": left / self._spread, "pair_bias": bias}
        named["pair_right"] = right / self._spread
        return {name: value.numpy().astype(np.float32) for name, value in named.items()}
