"""Fitted bonuses give guesses a probability that equals how often they are right."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from bita.bonuses import DEFAULT_BONUSES, Bonuses
from bita.runtime.decoding.drafting import Drafts
from bita.runtime.decoding.guesses import Guesses, make_guesses
from bita.tuning.bonus_fit import Place, bonuses_of

DRAFTED = [5, 6, 7, 8]
NOTHING = Place(None, None, 5, DRAFTED, [2.0, 1.0, 0.0, -1.0])


def places(count: int, share: float, likely: Place, otherwise: Callable[[int], int]) -> list[Place]:
    """Return places of which `share` have the token of `likely`, and the others another token."""
    right = np.random.default_rng(0).random(count) < share
    return [
        likely if each else replace(likely, true=otherwise(number))
        for number, each in enumerate(right)
    ]


def guesses_of(bonuses: Bonuses, text: list[int], place: Place | None = None) -> Guesses:
    """Return the guesses after a text, with the drafts of `place`, or without masks."""
    drafts = Drafts(1, len(DRAFTED))
    if place is not None:
        drafts.read(np.array([place.draft_ids]), np.array([place.draft_scores], np.float32))
    guesses = make_guesses(None, bonuses, drafts)
    guesses.start(text)
    return guesses


def test_without_places_the_default_bonuses_remain() -> None:
    assert bonuses_of([]) == DEFAULT_BONUSES


@pytest.mark.parametrize("share", [0.15, 0.5, 0.9])
def test_text_alone_is_as_sure_as_it_is_right(share: float) -> None:
    likely = replace(NOTHING, text=(0, 30), true=30)
    bonuses = bonuses_of(places(2000, share, likely, lambda number: 1000 + number))
    guesses = guesses_of(bonuses, [1, 30, 2, 1])
    assert guesses.candidates(1) == [[30]]
    assert guesses.share == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_masks_are_as_sure_as_they_are_right(scale: float) -> None:
    """The fit corrects the scale of the logits."""
    weights = np.exp(scale * np.array(NOTHING.draft_scores))
    true = np.random.default_rng(0).choice(DRAFTED, 4000, p=weights / weights.sum())
    bonuses = bonuses_of([replace(NOTHING, true=int(token)) for token in true])
    guesses = guesses_of(bonuses, [1], NOTHING)
    assert guesses.candidates(1)[0][0] == 5
    assert guesses.share == pytest.approx(weights[0] / weights.sum(), abs=0.03)


def test_a_guess_next_to_masks_is_as_sure_as_it_is_right() -> None:
    likely = replace(NOTHING, text=(1, 30), true=30)
    bonuses = bonuses_of(
        [*places(2000, 0.8, likely, lambda number: 5), *places(500, 0.6, NOTHING, lambda _: 6)]
    )
    guesses = guesses_of(bonuses, [1, 2, 30, 3, 1, 2], NOTHING)
    assert guesses.candidates(1)[0][0] == 30
    assert guesses.share == pytest.approx(0.8, abs=0.06)


def test_bonuses_of_rare_cases_stay_near_the_default() -> None:
    bonuses = bonuses_of(places(2000, 0.5, replace(NOTHING, text=(0, 30), true=30), lambda _: 9))
    assert bonuses.text_alone[5] == pytest.approx(DEFAULT_BONUSES.text_alone[5], abs=1e-4)
    assert bonuses.table_beside == pytest.approx(DEFAULT_BONUSES.table_beside, abs=1e-4)
