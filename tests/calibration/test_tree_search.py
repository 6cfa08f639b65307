"""The tree search is compared with all trees, and expected tokens with counted ones."""

from pathlib import Path as FilePath

import pytest
from acceptances import all_trees, random_acceptance
from deadlines import stopped_if_it_hangs
from native_engines import FEATURES, native_engine, require_library

from bita.calibration.acceptance import Acceptance, Guess, Position, measure_acceptance
from bita.calibration.draft_chain import DraftChain
from bita.calibration.replay import count_tokens_per_step
from bita.calibration.tree_search import best_trees, path_shares
from bita.engine import open_engine
from bita.errors import EngineError
from bita.runtime.backends.layout import READ_NODES
from bita.runtime.session import Session
from bita.tree import Tree


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("min_level", "mode"), [(0, "tree"), (0, "exact"), (2, "tree")])
def test_small_trees_are_as_good_as_all_trees(seed: int, min_level: int, mode: str) -> None:
    max_rows = 7
    shares = path_shares(random_acceptance(2, 2, seed), 2, min_level, mode)
    if min_level:
        shares = tuple(
            {p: v for p, v in s.items() if len(p) <= 2 and max((*p, 1)) <= 2} for s in shares
        )
    best: dict[int, float] = {}
    for masks in all_trees(2, 2, max_rows):
        chain = DraftChain(shares, masks)
        best[chain.num_rows] = max(best.get(chain.num_rows, 0), chain.value)
    found = best_trees(shares, max_rows, min_level)
    for rows in range(1, max_rows + 1):
        # a tree of fewer rows may be as good, so compare the best with at most this many rows
        ours = max(f.tokens_per_step for r, f in found.items() if r <= rows)
        theirs = max(value for r, value in best.items() if r <= rows)
        assert ours == pytest.approx(theirs, rel=1e-9), rows


@pytest.mark.slow
def test_expected_tokens_equal_those_of_a_long_replay() -> None:
    acceptance = random_acceptance(3, 8, 0, length=60_000)
    shares = path_shares(acceptance, 3, 0, "tree")
    found = best_trees(shares, 40)
    for rows in (4, 12, 24, 40):
        tree = found[rows].tree
        assert tree.num_rows == rows
        assert found[rows].tokens_per_step == pytest.approx(
            count_tokens_per_step(acceptance, tree), rel=0.01
        )
    assert found[40].tokens_per_step > found[12].tokens_per_step > found[4].tokens_per_step > 1
    assert found[40].tokens_per_step > count_tokens_per_step(acceptance, Tree.triangle()) * 40 / 52


def test_a_search_up_to_128_rows_ends_in_time() -> None:
    shares = path_shares(random_acceptance(3, 16, 1, length=3000), 3, 0, "tree")
    with stopped_if_it_hangs():
        found = best_trees(shares, 128)
    assert max(found) == 128


@pytest.fixture(scope="module")
def measured(tiny_engine: FilePath) -> Acceptance:
    prompts = ["Hello tree", "A mask token", "The quick brown fox. The quick brown fox. The quick"]
    return measure_acceptance(open_engine(tiny_engine), prompts, 60, num_threads=1)


@pytest.mark.parametrize(
    "tree",
    [
        Tree.root_only(),
        Tree.chain(3),
        Tree.triangle(),
        Tree.from_paths([(1,), (2,), (5,), (1, 1), (2, 1)], [2, 3, 0, 1, 2, 3]),
        Tree.chain(1, 0).with_guesses(1),
        Tree.chain(5, 0).with_guesses(2),
    ],
    ids=str,
)
def test_a_replay_counts_the_steps_of_the_engine(
    tree: Tree, measured: Acceptance, tiny_engine: FilePath
) -> None:
    session = Session.open(tiny_engine, tree=tree, mode="tree", num_threads=1)
    for prompt in (
        "Hello tree",
        "A mask token",
        "The quick brown fox. The quick brown fox. The quick",
    ):
        session.generate(prompt, 60)
    counted = session.stats.num_tokens / session.stats.num_steps
    assert count_tokens_per_step(measured, tree) == pytest.approx(counted, rel=1e-9)


def test_acceptance_is_written_and_read(measured: Acceptance) -> None:
    data = measured.to_json()
    assert Acceptance.from_json(data) == measured
    assert data["masks"][0]["count"] == measured.num_positions
    for row in data["masks"]:
        assert 0 <= sum(row["shares"]) <= 1
    with pytest.raises(EngineError, match="acceptance is not readable"):
        Acceptance.from_json({"texts": 3})


def test_answers_of_an_earlier_run_are_kept(tiny_engine: FilePath, measured: Acceptance) -> None:
    marked = (Position((1, 1, 1), (Guess(4, 8),)),)
    prompts = ["Hello tree", "A mask token"]
    engine = open_engine(tiny_engine)
    again = measure_acceptance(engine, prompts, 60, 1, known={0: marked})
    assert again.texts == (marked, measured.texts[1])


def test_wide_steps_and_batched_answers_give_the_same_positions(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes a cache without space for a wide step: 160 slots hold only one of 128 rows."""
    require_library()
    engine = native_engine(FEATURES["llama3"], tmp_path)
    prompts = [[5, 9, 7 + number] for number in range(6)]
    at_once = measure_acceptance(engine, prompts, 70, num_threads=1)
    monkeypatch.setattr("bita.calibration.acceptance.ANSWERS_AT_ONCE", 1)
    monkeypatch.setattr("bita.calibration.acceptance.WIDE_NODES", READ_NODES)
    assert measure_acceptance(engine, prompts, 70, num_threads=1) == at_once
    assert max(map(len, at_once.texts)) > 64


def test_answers_without_a_draft_are_refused(tiny_engine: FilePath) -> None:
    with pytest.raises(EngineError, match="no answer of 1 has a token to draft after"):
        measure_acceptance(open_engine(tiny_engine), ["Hello"], 1, 1)
