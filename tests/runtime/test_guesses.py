"""Guesses that combine the text, a table of continuations and the masks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bita.adapter import Adapter
from bita.bonuses import DEFAULT_BONUSES, MAX_MATCH, TABLE_STEPS, Bonuses
from bita.calibration.acceptance import measure_acceptance
from bita.calibration.replay import replay
from bita.continuations import Continuations, count_continuations
from bita.engine import ADAPTER_FILE, open_engine
from bita.errors import LibraryMissingError
from bita.pairs import PairTables
from bita.runtime.decoding import guesses as guesses_module
from bita.runtime.decoding.drafting import Drafts
from bita.runtime.decoding.guesses import Guesses, make_guesses
from bita.runtime.decoding.native_guesses import NativeGuesses
from bita.runtime.decoding.plain_guesses import PlainGuesses
from bita.runtime.session import Session
from bita.tree import MAX_LEVEL, Tree
from bita.tree_table import TreeTable

RNG = np.random.default_rng(7)


def hide_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise LibraryMissingError("none")

    monkeypatch.setattr(guesses_module, "decoding_library", missing)


@pytest.fixture(params=[NativeGuesses, PlainGuesses], autouse=True)
def implementation(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> type[Guesses]:
    """The implementation of guesses under test."""
    if request.param is PlainGuesses:
        hide_library(monkeypatch)
    chosen: type[Guesses] = request.param
    return chosen


def table_of(*texts: list[int], times: int = 30) -> Continuations:
    table = count_continuations([(text, 1) for text in texts * times], 1000)
    assert table is not None
    return table


def start_guesses(
    table: Continuations | None, text: list[int], drafts: Drafts | None = None
) -> Guesses:
    index = make_guesses(table, DEFAULT_BONUSES, drafts or Drafts(1, 4))
    index.start(text)
    return index


def drafts_of(ids: list[int], logits: list[float]) -> Drafts:
    """Make the drafts of one mask."""
    drafts = Drafts(1, len(ids))
    drafts.read(np.array([ids]), np.array([logits], np.float32))
    return drafts


def first_candidates(index: Guesses, count: int) -> list[int]:
    return [candidates[0] for candidates in index.candidates(count)]


def test_a_text_alone_guesses_what_followed_last_time() -> None:
    assert start_guesses(None, [1, 2, 3, 1]).candidates(2) == [[2], [3]]
    level = start_guesses(None, [1, 2, 3, 1]).level()
    assert 0 < level < start_guesses(None, [1, 2, 3, 1, 2]).level()
    assert start_guesses(None, [1, 2, 3, 1]).candidates(2, level + 1) == []
    assert start_guesses(None, [1, 2, 3]).candidates(2) == []


def test_an_empty_text_gives_no_guesses() -> None:
    index = start_guesses(table_of([1, 2]), [], drafts_of([5, 6], [2.0, 1.0]))
    assert (index.level(), index.share, index.from_masks) == (0, 0.0, False)
    assert index.candidates(2) == []


def test_frequent_continuations_are_guessed() -> None:
    index = start_guesses(table_of([1, 2, 3, 4, 5, 6]), [50, 1, 2])
    assert index.candidates(6) == [[3], [4], [5], [6]]  # the table knows nothing after that
    assert index.level() > 7
    index.extend([99])
    assert (index.level(), index.candidates(3), index.from_masks) == (0, [], False)


def test_a_new_text_forgets_the_last_one() -> None:
    index = start_guesses(table_of([1, 2, 3]), [50, 1, 2])
    assert index.candidates(1) == [[3]]
    index.start([60])
    assert index.candidates(1) == []
    index.start([1])
    assert index.candidates(2) == start_guesses(table_of([1, 2, 3]), [1]).candidates(2)


def test_unsure_continuations_have_a_lower_level() -> None:
    split = table_of(*([1, token] for token in (2, 2, 2, 3, 3, 4, 5)))
    levels = [start_guesses(table, [50, 1]).level() for table in (split, table_of([1, 2]))]
    assert 0 < levels[0] < levels[1]
    assert start_guesses(split, [50, 1]).candidates(1, min_level=levels[0] + 1) == []


def test_the_more_confident_of_text_and_table_is_the_first_candidate() -> None:
    table = table_of([1, 2, 3])
    long_match = start_guesses(table, [*range(20, 27), 1, 40, 41, *range(20, 27), 1])
    assert first_candidates(long_match, 2) == [40, 41]
    assert long_match.level() > 7
    split = table_of(*([1, token] for token in (2, 2, 3, 4)))
    assert start_guesses(split, [1, 41, 6, 30, 1, 40, 31, 30, 1]).candidates(1) == [[40, 2]]
    assert start_guesses(table, [30, 1, 40, 41, 31, 1]).candidates(1) == [[2, 40]]
    assert start_guesses(table, [4] * 40).level() == MAX_LEVEL


def test_sources_that_agree_have_a_higher_level() -> None:
    split = table_of(*([1, token] for token in (2, 2, 3, 4)))
    alone = [start_guesses(split, [1]), start_guesses(table_of([7, 8]), [1, 2, 6, 1])]
    both = start_guesses(split, [1, 2, 6, 1])
    assert both.candidates(1) == [[2]]
    assert both.level() > max(index.level() for index in alone)


def test_guesses_reorder_the_drafts_of_masks() -> None:
    drafts = drafts_of([5, 6, 7], [2.0, 1.0, 0.0])
    table = table_of(*([1, token] for token in (7, 7, 7, 8)))
    by_mask = start_guesses(None, [1], drafts)
    assert by_mask.candidates(1) == [[5, 6, 7]]
    assert by_mask.from_masks
    both = start_guesses(table, [1], drafts)
    assert both.candidates(1)[0][0] == 7
    assert not both.from_masks
    assert both.level() > 1
    # a sure guess that no mask drafted is added, and the last draft is dropped
    assert start_guesses(table_of([1, 9]), [1], drafts).candidates(1) == [[9, 5, 6]]
    drafts.num_masks = 0
    assert start_guesses(None, [1], drafts).candidates(1) == []


def test_guesses_after_the_drafts_continue_from_them() -> None:
    drafts = drafts_of([5, 6, 7], [4.0, 1.0, 0.0])
    assert first_candidates(start_guesses(table_of([5, 11, 12]), [1], drafts), 3) == [5, 11, 12]
    text = [5, 20, 21, 1, 6, 30, 31, 1]  # 6 followed last time, but masks draft 5
    assert start_guesses(None, text, drafts).candidates(2) == [[5, 6, 7]]


def test_the_library_makes_the_guesses_where_it_can(implementation: type[Guesses]) -> None:
    assert isinstance(make_guesses(None, DEFAULT_BONUSES, Drafts(1, 4)), implementation)
    wide = PairTables(*np.zeros((2, 9, 2), np.float32))  # the library reads float16
    for drafts in (Drafts(1, 4, wide), Drafts(1, 257)):
        assert isinstance(make_guesses(None, DEFAULT_BONUSES, drafts), PlainGuesses)


def test_the_number_of_guesses_can_grow() -> None:
    index = start_guesses(None, [1, 2, 3, 1])
    assert first_candidates(index, 2) == [2, 3]
    assert first_candidates(index, 100) == ([2, 3, 1] * 34)[:100]
    assert first_candidates(index, 3) == [2, 3, 1]


def test_long_texts_are_looked_up_too() -> None:
    text = RNG.permutation(50_000).tolist()
    index = start_guesses(None, text)
    assert (index.level(), index.candidates(1)) == (0, [])
    index.extend(text[31_000:31_003])
    assert first_candidates(index, 4) == text[31_003:31_007]


def random_bonuses() -> Bonuses:
    def some(count: int) -> tuple[float, ...]:
        return tuple(np.sort(RNG.normal(0.5, 2, count)).tolist())

    text, table, alone, table_alone = map(some, 2 * (MAX_MATCH, TABLE_STEPS))
    return Bonuses.of(Bonuses(0.7, text, table, alone, table_alone, 1.25).array())


@pytest.mark.parametrize("rank", [0, 3, 16])
@pytest.mark.parametrize("with_table", [False, True])
def test_the_library_and_python_make_the_same_guesses(
    rank: int, with_table: bool, implementation: type[Guesses], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repetitive texts grow by a few tokens at a time, with and without drafts of masks."""
    if implementation is PlainGuesses:
        pytest.skip("nothing to compare with")
    tokens, bonuses = 12, random_bonuses()
    sides = RNG.normal(size=(2, tokens, max(rank, 1))).astype(np.float16)
    drafts = Drafts(3, 5, PairTables(*sides) if rank else None)
    texts = [(RNG.integers(0, tokens, 60).tolist(), 1) for _ in range(8)]
    table = count_continuations(texts, 150) if with_table else None
    ours = make_guesses(table, bonuses, drafts)
    hide_library(monkeypatch)
    plain = make_guesses(table, bonuses, drafts)
    levels: set[int] = set()
    for _ in range(4):
        for each in (ours, plain):
            each.start([])
        for _ in range(60):
            added = RNG.integers(0, tokens, RNG.integers(1, 4)).tolist()
            num_masks = int(RNG.integers(0, 4))
            ids = np.array([RNG.permutation(tokens)[:5] for _ in range(num_masks)])
            logits = RNG.normal(0, 3, (num_masks, 5)).astype(np.float32)
            drafts.read(ids.reshape(-1, 5), logits)
            for each in (ours, plain):
                each.extend(added)
            levels.add(plain.level())
            assert ours.level() == plain.level()
            assert ours.share == pytest.approx(plain.share, rel=1e-5)
            assert ours.from_masks == plain.from_masks
            count = int(RNG.integers(0, 9))
            assert ours.candidates(count) == plain.candidates(count)
    assert len(levels) > 6


def test_the_decoder_and_a_replay_take_the_same_steps(tiny_engine: Path, tmp_path: Path) -> None:
    """The table holds the engine's own answers, so some guesses are right; texts do not change."""
    engine = open_engine(tiny_engine)
    plain = Session.open(tiny_engine, tree=Tree.root_only(), num_threads=1)
    prompts = [RNG.integers(4, 300, length).tolist() for length in (5, 9, 12)]
    answers = [plain.generate(prompt, 40).token_ids for prompt in prompts]
    texts = [((*p, *a), len(p)) for p, a in zip(prompts, answers, strict=True)]
    adapter = replace(
        Adapter.load(engine.file(ADAPTER_FILE)), continuations=count_continuations(texts, 500)
    )
    trees = TreeTable(
        (Tree.root_only(1), Tree.chain(2, 1).with_guesses(1), Tree.chain(5, 0).with_guesses(1)),
        (0, 1, 4),
        ((0, 1, 2), (0, 1, 2)),
    )
    session = plain.using(tree=trees, adapter=adapter, mode="tree")
    acceptance = measure_acceptance(engine, prompts, 40, 1, adapter=adapter)
    steps = replay(acceptance, trees)
    num_right = 0
    for prompt, answer, visits in zip(prompts, answers, steps, strict=True):
        session.reset_stats()
        assert session.generate(prompt, 40).token_ids == answer
        assert session.stats.num_steps == len(visits)
        num_right += session.stats.num_from_text
    assert num_right > 5
