"""Rank the candidates for the next token: a mask token's drafts and guesses from other sources.

A candidate's score is the mask token's score times a scale, plus the bonuses of the other sources
that guess it (`bita.bonuses`).
"""

from collections.abc import Sequence

import numpy as np

from bita.bonuses import ABSENT
from bita.pairs import PairTables
from bita.tensors import Float32Array, Int64Array


def order_drafts(
    ids: Int64Array,
    logits: Float32Array,
    pairs: PairTables | None,
    scale: float,
    before: int,
    guesses: Sequence[tuple[int, float]],
) -> tuple[list[int], float]:
    """Return the candidates for the token after `before`, and the softmax share of the best.

    There are as many candidates as the mask token has drafts; the best comes first.

    ids, logits: [k], the mask token's drafts.
    scale: factor of logits and pair scores.
    guesses: tokens of other sources, each once, with their bonuses.
    """
    tokens: list[int] = ids.tolist()
    num_drafts = len(tokens)
    by_mask = logits if pairs is None else logits + pairs.scores(before, tokens)
    found = (np.float32(scale) * by_mask).tolist()
    lowest = min(found)
    for token, bonus in guesses:
        if token not in tokens:
            tokens.append(token)
            found.append(lowest - scale * ABSENT)
        found[tokens.index(token)] += bonus
    scores = np.array(found, np.float32)
    best = np.argsort(-scores, kind="stable")
    share = 1 / float(np.exp(scores - scores[best[0]]).sum())
    return [tokens[place] for place in best[:num_drafts]], share
