"""The trees that a guard takes in texts whose drafts are right or wrong."""

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from acceptances import random_acceptance
from random_drafts import AR, drafting_adapter, prompt_ids

from bita.calibration.acceptance import Guess, Position, measure_acceptance
from bita.calibration.replay import replay
from bita.engine import open_engine
from bita.runtime.decoding.guard import LOSS_A_TOKEN, MAX_LOSS, Guard, GuardedTrees
from bita.runtime.session import Session
from bita.tree import Tree
from bita.tree_table import TreeTable

MASKS, VERIFY, NGRAMS = range(3)
TABLE = TreeTable(
    (Tree.root_only(1), Tree.chain(1, 0), Tree.chain(3, 0).with_guesses(1)),
    (0, 1),
    ((MASKS, NGRAMS), (VERIFY, NGRAMS)),
).with_costs([3.0, 3.3, 3.6, 4.2])
TREES = GuardedTrees(TABLE)
ROOT = 3
PROMPTS = ["Hello tree", "A mask token", "The quick brown fox. The quick brown fox. The quick"]


class Text:
    """Steps of an artificial text; every step has a match of length `match`."""

    def __init__(self, match: int = 0) -> None:
        self.guard = Guard(TREES)
        self.match = match
        self.drafted, self.num_tokens, self.cost = 1, 0, 0.0

    def step(self, num_right: int) -> int:
        """Take a step with up to `num_right` correct drafts, and return its tree's number."""
        number = TABLE.number(self.drafted, self.match)
        taken = self.guard.pick(number, self.match)
        tree = TREES.trees[taken]
        num_tokens = 1 + min(num_right, tree.spine_length)
        self.guard.count(num_tokens, num_right > 0)
        self.drafted = tree.max_masks
        self.num_tokens += num_tokens
        self.cost += TABLE.costs[tree.num_rows - 1]
        return taken


def test_a_guard_appends_a_root_only_tree_to_the_table() -> None:
    assert TREES.trees == (*TABLE.trees, AR)
    lean = GuardedTrees(replace(TABLE, trees=(*TABLE.trees[:2], Tree.chain(1, 1)))).trees
    assert lean == (*TABLE.trees[:2], Tree.chain(1, 1), AR)


@pytest.mark.parametrize("match", [0, 1, 9])
def test_no_text_loses_more_than_the_bound(match: int) -> None:
    text, late = Text(match), []
    for number in range(1000):
        taken = text.step(0)
        assert text.cost - text.num_tokens <= MAX_LOSS + LOSS_A_TOKEN * text.num_tokens + 1e-9
        late += [taken] if number >= 200 else []
    assert late.count(ROOT) > 0.9 * len(late)


def test_trees_that_pay_are_taken_to_the_end() -> None:
    for match, taken in ((0, {MASKS, VERIFY}), (5, {NGRAMS})):
        text = Text(match)
        assert {text.step(1) for _ in range(500)} == taken


def test_guesses_return_once_they_are_right() -> None:
    text = Text(match=5)
    while text.step(0) != ROOT:
        pass
    assert [text.step(0) for _ in range(50)] == [ROOT] * 50
    taken = [text.step(3) for _ in range(20)]
    assert taken[0] == ROOT
    assert taken[-15:] == [NGRAMS] * 15


def test_masks_are_tried_again_after_growing_pauses() -> None:
    text = Text()
    taken = [text.step(0) for _ in range(400)]
    tried = [place for place, each in enumerate(taken) if each == MASKS]
    pauses = [b - a for a, b in pairwise(tried) if b - a > 2]
    assert [pause >= 32 * 2**n for n, pause in enumerate(pauses)] == [True] * len(pauses)
    assert len(pauses) >= 2
    while text.step(0) != MASKS:
        pass
    assert ROOT not in [text.step(1) for _ in range(200)]


def test_a_step_without_a_pick_is_not_counted() -> None:
    guard = Guard(TREES)
    for _ in range(1000):
        assert not guard.count(1, False)
    assert guard.pick(VERIFY, 0) == VERIFY
    assert guard.pick(VERIFY, 0) == VERIFY


def guarded_table(seed: int, dear: bool = True) -> TreeTable:
    """Make a table of chains at most as deep as their drafts, which a replay covers completely."""
    rng = random.Random(seed)
    chains = [Tree.from_paths([(1,) * d for d in range(depth + 1)]) for depth in range(4)]
    plain = [Tree.from_paths(chain.paths, rng.randint(0, 3)) for chain in chains]
    guessing = [Tree.chain(rng.randint(1, 5), rng.randint(0, 3)).with_guesses(1) for _ in range(3)]
    rows = [[rng.randint(0, d), *rng.sample(range(4, 7), 3)] for d in range(4)]
    table = TreeTable((*plain, *guessing), (0, 1, 2, 6), tuple(map(tuple, rows)))
    each = 0.5 if dear else 0.05
    return table.with_costs([1 + each * row for row in range(table.num_rows)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", ["exact", "tree"])
def test_a_replay_takes_the_same_steps_as_the_decoder(
    tiny_engine: Path, seed: int, mode: str
) -> None:
    acceptance = measure_acceptance(open_engine(tiny_engine), PROMPTS, 60, num_threads=1)
    table = guarded_table(seed, dear=seed % 2 == 0)
    session = Session.open(tiny_engine, tree=table, mode=mode, num_threads=1)
    decoder = session.decoder
    for prompt, visits in zip(PROMPTS, replay(acceptance, table, mode), strict=True):
        text = decoder.begin(session.encode(prompt))
        decoder.step(text)
        for visit in visits:
            assert decoder.pick_tree(text)[0].tree == visit.tree
            assert text.drafts.num_masks == visit.num_drafted
            decoder.step(text)
    if seed % 2 == 0:
        assert session.stats.num_guarded_steps > 0


@pytest.mark.parametrize("seed", range(4))
def test_a_guard_leaves_the_text_unchanged(tiny_engine: Path, seed: int) -> None:
    opened = Session.open(tiny_engine, num_threads=1)
    adapter = drafting_adapter(opened, prefix_length=seed % 3, seed=seed)
    plain = opened.using(tree=AR, adapter=adapter)
    is_dear = seed % 2 == 0
    guarded = opened.using(tree=guarded_table(seed, is_dear), adapter=adapter)
    for number in range(2):
        prompt = prompt_ids(100 * seed + number)
        for temperature in (0.0, 0.9):
            expected, found = (
                session.generate(prompt, 80, (), True, temperature=temperature, seed=3).token_ids
                for session in (plain, guarded)
            )
            assert found == expected
    stats = guarded.stats
    assert stats.num_guarded_steps > 0 if is_dear else stats.num_guarded_steps < stats.num_steps


def test_the_cache_ends_with_single_steps(tiny_engine: Path) -> None:
    opened = Session.open(tiny_engine, num_threads=1)
    guarded = opened.using(tree=guarded_table(0))
    expected = opened.using(tree=AR).generate(prompt_ids(2), 10_000, ignore_eos=True)
    found = guarded.generate(prompt_ids(2), 10_000, ignore_eos=True)
    assert (found.finish_reason, found.token_ids) == ("capacity", expected.token_ids)


@pytest.mark.parametrize("thinned", [1.0, 0.3, 0.0])
def test_replayed_texts_lose_little_to_wrong_drafts(thinned: float) -> None:
    """Drafts are those that were measured, thinned until hardly any is right."""
    rng = random.Random(1)
    acceptance = random_acceptance(1, 4, 7, length=2000)
    text = tuple(
        each if rng.random() < thinned else Position((0,), (Guess(each.guesses[0].level),))
        for each in acceptance.texts[0]
    )
    texts = tuple(text[start : start + 128] for start in range(0, 1920, 128))
    acceptance = replace(acceptance, texts=texts, prompt_lengths=(9,) * len(texts))
    for visits in replay(acceptance, TABLE):
        cost = sum(TABLE.costs[visit.tree.num_rows - 1] for visit in visits)
        assert cost <= 128 + MAX_LOSS + 128 * LOSS_A_TOKEN + 1e-9
