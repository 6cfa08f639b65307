"""Tests of tables with a tree for each state: the file, and decoding."""

import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from deadlines import stopped_if_it_hangs
from random_drafts import AR, drafting_adapter, logits_of_text, prompt_ids, random_tree

from bita.calibration.acceptance import measure_acceptance
from bita.calibration.replay import count_tokens_per_step, replay
from bita.calibration.verify import verify
from bita.cli.shared.trees import read_tree
from bita.engine import open_engine
from bita.errors import TreeError
from bita.runtime.session import Session
from bita.tree import Tree
from bita.tree_table import TreeTable, read_trees, trees_from_json

TABLE = TreeTable(
    (
        Tree.root_only(2),
        Tree.from_paths([(1,), (2,), (1, 1)], 1),
        Tree.chain(5, 0).with_guesses(1),
    ),
    (0, 1, 2, 5),
    ((0, 0, 2, 2), (1, 1, 1, 2), (1, 1, 2, 2)),
)


def random_table(seed: int) -> TreeTable:
    rng = random.Random(seed)
    trees = [random_tree(100 * seed + n).with_guesses(rng.randint(0, 2)) for n in range(4)]
    rows = [tuple(rng.randrange(4) for _ in range(4)) for _ in range(4)]
    return TreeTable((*trees,), (0, 1, 2, 4), (*rows,))


@pytest.fixture(scope="module")
def session(tiny_engine: Path) -> Session:
    return Session.open(tiny_engine, num_threads=1)


def test_tables_are_written_and_read(tmp_path: Path) -> None:
    assert trees_from_json(TABLE.to_json()) == TABLE
    for tree in TABLE.trees:
        assert trees_from_json(tree.to_json()) == tree
    path = tmp_path / "trees.json"
    path.write_text(TABLE.to_json())
    assert read_tree(str(path), 3) == TABLE
    assert str(TABLE) == "3 trees by state, of 3 to 8 rows"
    assert TABLE.states()[:3] == [
        ("masks 0, level 0-1", TABLE.trees[0]),
        ("masks 0, level 2+", TABLE.trees[2]),
        ("masks 1, level 0-4", TABLE.trees[1]),
    ]
    assert TABLE.states()[-1] == ("masks 2, level 2+", TABLE.trees[2])


def test_costs_are_written_and_read() -> None:
    guarded = TABLE.with_costs([3.0, 3.3, 3.2, 3.9, 4.2, 4.5, 4.8, 6.0, 7.0])
    assert guarded.costs == (1, 1.1, 1.1, 1.3, 1.4, 1.5, 1.6, 2)
    assert trees_from_json(guarded.to_json()) == guarded
    assert "costs" not in TABLE.to_json()
    assert str(guarded) == "3 trees by state, of 3 to 8 rows, guarded"
    assert str(TreeTable.of(Tree.chain(1, 0)).with_costs([1, 2])) == (
        "2 nodes (widths [1]), 0 mask rows, guarded"
    )


COSTLY = '{"trees": [{"nodes": [{"path": [], "masks": 1}]}], "levels": [0], "by_state": [[0]], '


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ("[1]", "costs has 1 numbers, but the largest tree has 2 rows; calibrate the tree"),
        ("[1, 2, 3]", "costs has 3 numbers, but"),
        ("[1.5, 2]", r"costs \[1.5, 2.0\] do not rise from 1.*remove costs"),
        ("[1, 0.5]", "do not rise from 1"),
        ("[1, -1]", r"costs is \[1, -1\], not a list of numbers of 0 to"),
        ("[1, NaN]", r"costs is \[1, nan\], not a list of numbers"),
        ("[1, Infinity]", r"costs is \[1, inf\], not a list of numbers"),
        ("[1, 1e7]", "not a list of numbers of 0 to"),
        ('[1, "2"]', "not a list of numbers"),
        ("[1, true]", "not a list of numbers"),
        ("[1, [2]]", "not a list of numbers"),
        ("null", "costs is None, not a list of numbers"),
        ("3", "costs is 3, not a list of numbers"),
        ("{}", "not a list of numbers"),
    ],
)
def test_broken_costs_are_refused(costs: str, message: str) -> None:
    with pytest.raises(TreeError, match=message):
        trees_from_json(f'{COSTLY}"costs": {costs}}}')


def test_costs_that_do_not_rise_from_one_are_refused() -> None:
    for cost in (float("nan"), float("inf"), -1.0):
        with pytest.raises(TreeError, match="do not rise from 1"):
            TreeTable((Tree.chain(1, 0),), (0,), ((0,),), (1.0, cost))


def test_states_beyond_the_table_use_its_last_entries() -> None:
    assert [TABLE.number(0, level) for level in range(7)] == [0, 0, 2, 2, 2, 2, 2]
    assert [TABLE.number(1, level) for level in range(7)] == [1, 1, 1, 1, 1, 2, 2]
    assert [TABLE.number(9, level) for level in range(7)] == [1, 1, 2, 2, 2, 2, 2]
    assert TABLE.max_masks == 2
    assert TABLE.num_rows == 8
    assert TABLE.uses_text
    assert not TreeTable.of(Tree.chain(3)).uses_text
    assert TreeTable.of(Tree.chain(2).with_guesses(1)).uses_text
    assert TreeTable.of(TABLE) is TABLE
    assert TreeTable.of(AR).is_ar
    assert not TABLE.is_ar


ONE, LEVELS = '{"trees": [{"nodes": []}], "by_state": ', '"levels": '


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"trees": 3}', "not a table of trees"),
        ('{"trees": [{"nodes": []}]}', "levels is missing, not a list"),
        (
            '{"trees": [{"nodes": []}], "matches": [0], "by_state": [[0]]}',
            "matches is of an older bita-edge; calibrate the tree again",
        ),
        ('{"trees": [{"nodes": 4}], "by_state": [], "levels": [0]}', "not a tree"),
        ('{"trees": [{"nodes": []}], "by_state": [], "levels": [0]}', "by_state is empty"),
        (f"{ONE}[[0, 0]], {LEVELS}[0]}}", r"by_state\[0\] has 2 numbers, but levels has 1"),
        (f"{ONE}[[1]], {LEVELS}[0]}}", "there is no tree 1; they are numbered 0 to 0"),
        (f"{ONE}[[true]], {LEVELS}[0]}}", r"by_state\[0\] is \[True\], not a list"),
        (f"{ONE}[[0]], {LEVELS}[1]}}", r"levels \[1\] do not ascend from 0 to at most 12"),
        (
            f"{ONE}[[0, 0]], {LEVELS}[0, 13]}}",
            r"levels is \[0, 13\], not a list of whole numbers of 0 to 12",
        ),
        (f"{ONE}[[0, 0, 0]], {LEVELS}[0, 3, 3]}}", "do not ascend"),
        (f"{ONE}[[0]], {LEVELS}[]}}", "do not ascend"),
        ('{"trees": [], "by_state": [[0]], "levels": [0]}', "there is no tree 0"),
        ("[]", "not a tree"),
    ],
)
def test_broken_tables_are_refused(text: str, message: str) -> None:
    with pytest.raises(TreeError, match=message):
        trees_from_json(text)


def test_trees_that_do_not_fit_are_named(session: Session) -> None:
    wide = TreeTable((AR, Tree.root_only(4), Tree.chain(2, 9)), (0, 1, 2), ((0, 1, 2),))
    with pytest.raises(TreeError, match=r"tree 1: 4 masks on a node.*\n.*tree 2: 9 masks"):
        session.using(tree=wide)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("mode", ["exact", "tree"])
def test_text_stays_the_same(session: Session, seed: int, mode: str) -> None:
    adapter = drafting_adapter(session, prefix_length=seed % 4, seed=seed)
    plain = session.using(tree=AR, adapter=adapter)
    switching = session.using(tree=random_table(seed), adapter=adapter, mode=mode)
    for number in range(3):
        prompt = prompt_ids(100 * seed + number, 1 + 37 * number)
        expected = plain.generate(prompt, 60, ignore_eos=True).token_ids
        assert switching.generate(prompt, 60, ignore_eos=True).token_ids == expected
    assert switching.stats.num_steps < switching.stats.num_tokens


@pytest.mark.parametrize("seed", range(4))
def test_exact_mode_is_bit_identical_to_ar(session: Session, seed: int) -> None:
    adapter = drafting_adapter(session, prefix_length=seed % 3, seed=seed)
    plain = session.using(tree=AR, adapter=adapter, mode="exact")
    exact = session.using(tree=random_table(seed), adapter=adapter, mode="exact")
    expected = logits_of_text(plain, prompt_ids(seed), 40)
    np.testing.assert_array_equal(np.array(logits_of_text(exact, prompt_ids(seed), 40)), expected)


def test_each_state_uses_its_tree(session: Session) -> None:
    adapter = drafting_adapter(session, 0, 3)
    trees = Tree.root_only(2), Tree.chain(1, 1), Tree.chain(5, 0).with_guesses(1)
    table = TreeTable(trees, (0, 2), ((0, 2), (0, 2), (1, 2)))
    switching = session.using(tree=table, adapter=adapter, mode="tree")
    decoder = switching.decoder
    taken = Counter[int]()
    decoded = decoder.begin(prompt_ids(3))
    text = [*prompt_ids(3), *decoder.step(decoded)]
    drafted = 2
    while len(text) < 250:
        assert decoded.guesses is not None
        number = table.number(drafted, decoded.guesses.level())
        bound, *_ = decoder.pick_tree(decoded)
        assert bound.tree == trees[number]
        taken[number] += 1
        emitted = decoder.step(decoded)
        text += emitted
        last = decoder.stats.num_accepted
        drafted = decoded.drafts.num_masks
        assert drafted in bound.tree.num_masks
        assert last[()] == taken.total()
    assert {*taken} == {0, 1, 2}


def test_a_full_cache_ends_the_text_as_in_plain_decoding(
    tiny_engine: Path, session: Session
) -> None:
    table = TreeTable((Tree.chain(3, 3).with_guesses(1), AR), (0, 9), ((0, 1),))
    plain = session.using(tree=AR).generate(prompt_ids(2), 10_000, ignore_eos=True)
    found = session.using(tree=table).generate(prompt_ids(2), 10_000, ignore_eos=True)
    assert (found.finish_reason, found.token_ids) == ("capacity", plain.token_ids)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", ["exact", "tree"])
def test_a_replay_counts_the_steps_of_the_engine(tiny_engine: Path, seed: int, mode: str) -> None:
    prompts = ["Hello tree", "A mask token", "The quick brown fox. The quick brown fox. The quick"]
    acceptance = measure_acceptance(open_engine(tiny_engine), prompts, 60, num_threads=1)
    # Only trees with guesses are deeper than the drafts, because a replay does not know the drafts
    # of earlier steps.
    rng = random.Random(seed)
    chains = [Tree.from_paths([(1,) * d for d in range(depth + 1)]) for depth in range(4)]
    plain = [Tree.from_paths(chain.paths, rng.randint(0, 3)) for chain in chains]
    guessing = [Tree.chain(rng.randint(1, 5), rng.randint(0, 3)).with_guesses(1) for _ in range(3)]
    rows = [[rng.randint(0, d), *rng.sample(range(4, 7), 3)] for d in range(4)]
    table = TreeTable((*plain, *guessing), (0, 1, 2, 6), tuple(map(tuple, rows)))
    session = Session.open(tiny_engine, tree=table, mode=mode, num_threads=1)
    for prompt in prompts:
        session.generate(prompt, 60)
    assert len({visit.number for text in replay(acceptance, table) for visit in text}) > 1
    counted = session.stats.num_tokens / session.stats.num_steps
    assert count_tokens_per_step(acceptance, table, mode) == pytest.approx(counted, rel=1e-9)


def test_a_table_is_verified(tiny_engine: Path) -> None:
    session = Session.open(tiny_engine, tree=TABLE, num_threads=1)
    for comparison in verify(session, [prompt_ids(1), prompt_ids(2)], 40):
        assert comparison.num_identical == 2
        assert comparison.num_tokens == 80


BEYOND = [
    '{"trees": ' + "[" * 100_000,
    '{"trees": [{"nodes": []}], "levels": [Infinity], "by_state": [[0]]}',
    '{"trees": [{"nodes": []}], "levels": [0], "by_state": [[[0]]]}',
    '{"trees": [{"nodes": []}], "levels": [0], "by_state": [{"a": 0}]}',
    '{"trees": [{"nodes": []}], "levels": ["0"], "by_state": [[0]]}',
    '{"trees": [{"nodes": []}], "levels": 0, "by_state": 0}',
    '{"trees": {"nodes": []}, "levels": [0], "by_state": [[0]]}',
    '{"trees": [3], "levels": [0], "by_state": [[0]]}',
    '{"trees": [' + '{"nodes": []},' * 300 + '{"nodes": []}], "levels": [0], "by_state": [[0]]}',
    '{"trees": [{"nodes": []}], "levels": [0], "by_state": [' + "[0]," * 2000 + "[0]]}",
    '{"trees": [{"nodes": []}], "levels": [0], "by_state": [[1e30]]}',
]


@pytest.mark.parametrize("text", BEYOND, ids=range(len(BEYOND)))
def test_invalid_tables_give_one_short_error(text: str) -> None:
    with pytest.raises(TreeError) as caught:
        trees_from_json(text)
    assert len(str(caught.value)) < 3000


def test_files_of_trees_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    for content, message in (
        (
            b'{"nodes": ["\xff"]}',
            r"tree.json is not readable JSON \(byte 12 is not UTF-8\); fix it",
        ),
        (b'{"nodes": 3}', r"tree.json: not a tree: .*; fix it"),
        (b"[" + b" " * (5 << 20) + b"]", "at most 4194304 are read"),
        (b"[]", r"holds \[\], not a JSON object"),
    ):
        path.write_bytes(content)
        with pytest.raises(TreeError, match=message):
            read_trees(path, "fix it")
    path.unlink()
    with pytest.raises(TreeError, match=r"tree.json cannot be read \(No such file .*\); fix it"):
        read_trees(path, "fix it")
    os.mkfifo(path)
    with stopped_if_it_hangs(10), pytest.raises(TreeError, match="is not a regular file"):
        read_trees(path, "fix it")
    path.unlink()
    path.write_text(Tree.triangle((2, 1)).to_json())
    assert read_trees(path, "fix it") == Tree.triangle((2, 1))
