"""Tests of the gain of drafts on a prompt, and of the sources of accepted tokens."""

from pathlib import Path

import pytest

from bita.calibration.draft_gain import DraftGain, measure_gain
from bita.calibration.turns import Timed
from bita.runtime.decoding.stats import Stats
from bita.runtime.session import Session
from bita.tree import Tree


def make_timed(*token_ids: int, milliseconds: float = 10, masks: int = 0, text: int = 0) -> Timed:
    return Timed(20, 10, milliseconds, token_ids, masks, text)


def test_speeds_are_medians_and_drafts_are_counted_per_step() -> None:
    plain = tuple(make_timed(1, 2, milliseconds=ms) for ms in (10, 90, 10))
    drafted = tuple(make_timed(1, 2, milliseconds=ms, masks=6, text=3) for ms in (5, 5, 40))
    gain = DraftGain(plain, drafted)
    assert (gain.plain_speed, gain.drafted_speed, gain.ratio) == (2000, 4000, 2)
    assert gain.per_step == (0.6, 0.3)
    assert (gain.num_tokens, gain.parting) == (2, None)


@pytest.mark.parametrize(
    ("found", "parting"), [((1, 2, 3), None), ((1, 9, 3), 1), ((1, 2), 2), ((1, 2, 3, 4), 3)]
)
def test_texts_part_where_the_first_token_differs(
    found: tuple[int, ...], parting: int | None
) -> None:
    assert DraftGain((make_timed(1, 2, 3),), (make_timed(*found),)).parting == parting


def test_accepted_spine_nodes_count_as_guesses_up_to_its_length() -> None:
    stats = Stats()
    stats.count_path((1, 1, 1), num_guesses=2)  # the third is from a mask
    stats.count_path((1, 2), num_guesses=2)  # the second is not on the spine
    stats.count_path((2, 1), num_guesses=2)
    stats.count_path((1, 1))
    stats.count_path((), num_guesses=3)
    assert (stats.num_from_text, stats.num_from_masks) == (3, 6)


def test_each_token_of_a_step_has_a_source(tiny_engine: Path) -> None:
    session = Session.open(tiny_engine, tree=Tree.chain(3).with_guesses(1), num_threads=1)
    repeats_itself = {"ignore_eos": True, "logit_bias": {65: 100.0}}
    gain = measure_gain(session, "one two", 60, repeats_itself, rounds=2)
    assert gain.parting is None
    assert gain.num_tokens == 60
    one = gain.drafted[0]
    assert one.num_from_text > 0
    surplus = one.num_steps + one.num_from_masks + one.num_from_text - one.num_tokens
    assert 0 <= surplus <= 3  # tokens of the last step after the answer's end
    assert gain.plain[0].num_from_masks == gain.plain[0].num_from_text == 0
