"""The order of what may come after a token: a mask's drafts, and guesses from elsewhere.

A candidate scores what the mask says of it, times a scale, and the bonuses of the sources that
guess it (`bita.bonuses`).
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
    """What may come after a token, best first, as many as a mask drafts, and the share of the best
    among them (softmax).

    ids, logits: [k], the mask's drafts. scale: of logits and pair scores. before: the token.
    guesses: other tokens with their bonuses, none of them twice.
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
