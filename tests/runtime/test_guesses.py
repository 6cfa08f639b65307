"""Guesses from the text and from a table of continuations: the surer one is taken."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from bita.adapter import Adapter
from bita.calibration.acceptance import measure_acceptance
from bita.calibration.replay import replay
from bita.continuations import Continuations, count_continuations
from bita.engine import ADAPTER_FILE, open_engine
from bita.runtime.decoding.guesses import Guesses, new_index
from bita.runtime.decoding.ngrams import NgramIndex
from bita.runtime.session import Session
from bita.tree import MAX_MATCH, Tree
from bita.tree_table import TreeTable

RNG = np.random.default_rng(7)


def often(*texts: list[int], times: int = 30) -> Continuations:
    table = count_continuations([(text, 1) for text in texts * times], 1000)
    assert table is not None
    return table


def index_of(table: Continuations, text: list[int]) -> NgramIndex:
    index = new_index(table)
    index.start(text)
    return index


def test_without_a_table_the_index_is_the_texts() -> None:
    assert type(new_index(None)) is NgramIndex
    assert type(new_index(often([1, 2]))) is Guesses


def test_what_the_model_often_says_is_guessed() -> None:
    index = index_of(often([1, 2, 3, 4, 5, 6]), [50, 1, 2])
    assert index.guess(3) == [3, 4, 5]
    assert index.guess(6)[:4] == [3, 4, 5, 6]
    assert len(index.guess(6)) == 6
    assert index.match_length() > 5  # three tokens that are sure
    assert index.guess(2, index.match_length() + 1) == []
    index.extend([99])
    assert (index.match_length(), index.guess(3)) == (0, [])


def test_unsure_runs_count_less() -> None:
    split = often(*([1, token] for token in (2, 2, 2, 3, 3, 4, 5)))
    levels = [index_of(table, [50, 1]).match_length() for table in (split, often([1, 2]))]
    assert 0 < levels[0] < levels[1]


def test_a_long_match_in_the_text_is_surer_than_the_table() -> None:
    table = often([1, 2, 3])
    text = [*range(20, 30), 1, 40, 41, *range(20, 30), 1]
    assert index_of(table, text).guess(2) == [40, 41]
    assert index_of(table, text).match_length() == 12  # eleven, and one more beside a table
    assert index_of(table, [30, 1, 40, 41, 31, 1]).guess(2)[0] == 2
    assert index_of(table, [4] * 40).match_length() == MAX_MATCH


def test_decoder_and_replay_take_the_same_steps(tiny_engine: Path, tmp_path: Path) -> None:
    """The table is of the engine's own answers, so that some guesses are right; texts stay."""
    engine = open_engine(tiny_engine)
    plain = Session.open(tiny_engine, tree=Tree.root_only(), num_threads=1)
    prompts = [RNG.integers(4, 300, length).tolist() for length in (5, 9, 12)]
    answers = [plain.generate(prompt, 40).token_ids for prompt in prompts]
    texts = [((*p, *a), len(p)) for p, a in zip(prompts, answers, strict=True)]
    adapter = replace(
        Adapter.load(engine.file(ADAPTER_FILE)), continuations=count_continuations(texts, 500)
    )
    trees = TreeTable(
        (Tree.root_only(1), Tree.chain(2, 1).with_ngrams(1), Tree.chain(5, 0).with_ngrams(1)),
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
    assert num_right > 20
