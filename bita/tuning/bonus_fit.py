"""Fitting of the bonuses of guesses, on text that neither the table nor the masks were made from.

The guesses of the text's match, the table and the first mask are known for each place in the texts,
and so is the true token. The bonuses maximize the likelihood of the true tokens: a softmax
regression with a ridge penalty towards the default bonuses, which dominates for rare kinds of
guesses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bita.bonuses import ABSENT, DEFAULT_BONUSES, MAX_MATCH, TABLE_STEPS, Bonuses
from bita.continuations import LONGEST_RUN, Continuations
from bita.pairs import PairTables
from bita.runtime.decoding.ngrams import NgramIndex
from bita.tuning.evaluation import text_drafts
from bita.tuning.mask_model import AdapterParameters, MaskModel
from bita.tuning.training_texts import TrainingText

RIDGE = 1e-3  # weight of the squared differences from the default, added to the mean loss
MAX_SCALE = 4.0  # largest scale of masks; the smallest is its inverse
_NOTHING = -50.0  # score of a missing candidate
_TEXT, _TABLE = slice(1, 1 + MAX_MATCH), slice(1 + MAX_MATCH, 1 + MAX_MATCH + TABLE_STEPS)


@dataclass(frozen=True)
class Place:
    """Guesses for a place in a text, and the true token."""

    text: tuple[int, int] | None  # length of the text's match minus one, and its token
    table: tuple[int, int] | None  # tens of the table's percent, and its token
    true: int
    draft_ids: list[int]  # the first mask's drafts, the same number at each place
    draft_scores: list[float]


def fit_bonuses(
    model: MaskModel,
    parameters: AdapterParameters,
    table: Continuations | None,
    texts: Sequence[TrainingText],
) -> Bonuses:
    """Fit the bonuses of an adapter with this table to some texts."""
    pairs = parameters.pair_tables(model)
    return bonuses_of(
        [place for text in texts for place in _places(model, parameters, table, text, pairs)]
    )


def bonuses_of(places: Sequence[Place]) -> Bonuses:
    """Return the bonuses that make the true tokens most likely; the default ones without places."""
    if not places:
        return DEFAULT_BONUSES
    default = torch.from_numpy(DEFAULT_BONUSES.array())
    num_with = 1 + MAX_MATCH + TABLE_STEPS
    with_mask = _fit(_problem_with_mask(places), default[:num_with])
    with_mask[0] = with_mask[0].clamp(1 / MAX_SCALE, MAX_SCALE)
    alone = _fit(_problem_alone(places), default[num_with:])
    return Bonuses.of(torch.cat([with_mask, alone]).numpy())


def _places(
    model: MaskModel,
    parameters: AdapterParameters,
    table: Continuations | None,
    text: TrainingText,
    pairs: PairTables | None,
) -> list[Place]:
    """Return the places after each token of a response except the last, with the mask's drafts."""
    drafts, tokens = text_drafts(model, parameters, text), text.token_ids
    index, first = NgramIndex(), max(text.num_prompt - 1, 0) + 1
    index.start(tokens[:first])
    found = []
    for group in range(len(drafts.true)):
        end = first + group
        index.extend(tokens[end : end + 1])
        length = min(index.match_length(), MAX_MATCH)
        run = tokens[max(end + 1 - LONGEST_RUN, 0) : end + 1]
        token, percent = table.find(run) if table is not None else (0, 0)
        ids, scores = drafts.token_ids[group, 0], drafts.logits[group, 0]
        if pairs is not None:
            scores = scores + pairs.scores(tokens[end], ids)
        found.append(
            Place(
                (length - 1, index.following(0)) if length else None,
                (percent // 10, token) if percent else None,
                tokens[end + 1],
                ids.tolist(),
                scores.tolist(),
            )
        )
    return found


@dataclass(frozen=True)
class _Problem:
    """A regression over C candidates at n places, which score fixed + features @ weights."""

    fixed: Tensor  # [n, C]
    features: Tensor  # [n, C, F]
    true: Tensor  # [n]: index of the right candidate


def _problem_with_mask(places: Sequence[Place]) -> _Problem:
    """Return the problem of places whose true token is drafted or guessed.

    The weights are the scale of masks, and the bonuses of text and table.
    """
    num_drafts = len(places[0].draft_ids)
    shape = len(places), num_drafts + 2
    fixed = torch.full(shape, _NOTHING)
    features = torch.zeros(*shape, 1 + MAX_MATCH + TABLE_STEPS)
    true = torch.full((len(places),), -1)
    for number, place in enumerate(places):
        scores = torch.tensor(place.draft_scores)
        scores = scores - scores.max()
        ids = list(place.draft_ids)
        fixed[number, :num_drafts] = 0
        features[number, :num_drafts, 0] = scores
        for guess, kinds in ((place.text, _TEXT), (place.table, _TABLE)):
            if guess is None:
                continue
            kind, token = guess
            if token not in ids:
                fixed[number, len(ids)] = 0
                features[number, len(ids), 0] = scores.min() - ABSENT
                ids.append(token)
            features[number, ids.index(token), kinds.start + kind] = 1
        if place.true in ids:
            true[number] = ids.index(place.true)
    known = true >= 0
    return _Problem(fixed[known], features[known], true[known])


def _problem_alone(places: Sequence[Place]) -> _Problem:
    """Return the problem of the places without masks; the first candidate is any other token.

    The weights are the bonuses of text and table, and the bonus if both agree.
    """
    fixed = torch.full((len(places), 3), _NOTHING)
    features = torch.zeros(len(places), 3, MAX_MATCH + TABLE_STEPS + 1)
    true = torch.zeros(len(places), dtype=torch.int64)
    fixed[:, 0] = 0
    for number, place in enumerate(places):
        ids: list[int] = [-1]
        for guess, start in ((place.text, 0), (place.table, MAX_MATCH)):
            if guess is None:
                continue
            kind, token = guess
            if token in ids:
                features[number, ids.index(token), -1] = 1
            else:
                fixed[number, len(ids)] = 0
                ids.append(token)
            features[number, ids.index(token), start + kind] = 1
        if place.true in ids:
            true[number] = ids.index(place.true)
    return _Problem(fixed, features, true)


def _fit(problem: _Problem, start: Tensor) -> Tensor:
    """Return the weights [F]; the ridge penalty draws them towards `start`."""
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        scores = problem.fixed + problem.features @ weights
        mean = torch.nn.functional.cross_entropy(scores, problem.true)
        return mean + RIDGE * (weights - start).square().sum()

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return float(value.detach())

    optimizer.step(closure)
    return weights.detach()
