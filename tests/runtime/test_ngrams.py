"""Drafts from the text so far: the index, trees that use it, and unchanged text."""

import random
from pathlib import Path

import numpy as np
import pytest

from bita.cli.shared.trees import read_tree
from bita.errors import TreeError
from bita.runtime.decoding.drafting import Drafter, Drafts
from bita.runtime.decoding.ngrams import LONGEST, MAX_MATCH, NgramIndex
from bita.runtime.session import Session
from bita.tree import Tree


def make_guess(index: NgramIndex, count: int, min_match: int = 1) -> list[int]:
    if index.match_length() < min_match:
        return []
    return [index.following(number) for number in range(count)]


def slow_guess(text: list[int], count: int, min_match: int) -> list[int]:
    """Guess by definition: continue from the last of the longest matches."""
    for length in range(min(LONGEST, len(text) - 1), min_match - 1, -1):
        end = text[-length:]
        for place in range(len(text) - 1, length - 1, -1):
            if text[place - length : place] == end:
                longer = list(text)
                while len(longer) < place + count:
                    longer.append(longer[len(longer) - (len(text) - place)])
                return longer[place : place + count]
    return []


@pytest.mark.parametrize("min_match", [1, 2, 4])
def test_guesses_follow_the_definition(min_match: int) -> None:
    rng = random.Random(min_match)
    index, text = NgramIndex(), [rng.randrange(4) for _ in range(5)]
    index.start(text)
    found = 0
    for _ in range(400):
        count = rng.randrange(1, 6)
        guess = make_guess(index, count, min_match)
        assert guess == slow_guess(text, count, min_match)
        found += bool(guess)
        tokens = [rng.randrange(4) for _ in range(rng.randrange(1, 4))]
        index.extend(tokens)
        text += tokens
    assert found > 50


@pytest.mark.parametrize("seed", range(3))
def test_a_match_includes_all_text_that_agrees_before_the_guess(seed: int) -> None:
    rng = random.Random(seed)
    index, text = NgramIndex(), [rng.randrange(3)]
    index.start(text)
    seen = set()
    for _ in range(600):
        again = text[start : start + 9] if (start := rng.randrange(-30, len(text))) >= 0 else [0]
        tokens = again or [rng.randrange(3)]
        index.extend(tokens)
        text += tokens
        length = index.match_length()
        seen.add(length)
        guess = make_guess(index, 1)
        assert bool(guess) == (length > 0)
        # the last occurrence of the longest n-gram looked up, extended by all tokens that agree
        looked_up = min(length, LONGEST)
        places = [
            place
            for place in range(looked_up, len(text))
            if looked_up and text[place - looked_up : place] == text[-looked_up:]
        ]
        if length:
            place = places[-1]
            assert text[place] == guess[0]
            agree = 0
            while agree < place and text[place - 1 - agree] == text[-1 - agree]:
                agree += 1
            assert length == min(agree, MAX_MATCH)
    assert max(seen) == MAX_MATCH
    assert len(seen) > 5


def test_a_new_text_forgets_the_last_one() -> None:
    index = NgramIndex()
    index.start([1, 2, 3, 1, 2])
    assert make_guess(index, 4) == [3, 1, 2, 3]  # continues with the period
    index.start([1, 2])
    assert make_guess(index, 1) == []
    index.start([])
    assert make_guess(index, 1) == []


def test_the_spine_takes_the_guess_and_branches_take_the_other_drafts() -> None:
    tree = Tree.triangle((3, 2)).with_guesses(1)
    drafts = Drafts(2, 3)
    drafter = Drafter(tree)
    drafts.read(np.array([[10, 11, 12], [20, 21, 22]]), np.zeros((2, 3), np.float32))
    tokens = np.zeros(tree.num_nodes, np.int64)
    drafter.fill(tokens, drafts)
    assert dict(zip(tree.paths[1:], tokens[1:].tolist(), strict=True)) == {
        **{(1,): 10, (2,): 11, (3,): 12, (1, 1): 20, (1, 2): 21}
    }
    drafter.fill(tokens, drafts, [[99, 10, 11, 12]])
    assert dict(zip(tree.paths[1:], tokens[1:].tolist(), strict=True)) == {
        **{(1,): 99, (2,): 10, (3,): 11, (1, 1): 20, (1, 2): 21}
    }
    drafter.fill(tokens, drafts, [[11, 10, 12], [21, 20]])
    assert dict(zip(tree.paths[1:], tokens[1:].tolist(), strict=True)) == {
        **{(1,): 11, (2,): 10, (3,): 12, (1, 1): 21, (1, 2): 20}
    }


PROMPTS = ["Hello tree", "A mask token", "The quick brown fox. The quick brown fox. The quick"]
TREES = [
    Tree.chain(1, 0).with_guesses(1),
    Tree.chain(4, 0).with_guesses(2),
    Tree.chain(3).with_guesses(1),
    Tree.triangle().with_guesses(1),
    Tree.from_paths([(1,), (2,), (1, 1), (2, 1)], 1).with_guesses(3),
]


@pytest.mark.parametrize("tree", TREES, ids=str)
@pytest.mark.parametrize("mode", ["exact", "tree"])
def test_guesses_leave_the_text_unchanged(tree: Tree, mode: str, tiny_engine: Path) -> None:
    session = Session.open(tiny_engine, num_threads=1)
    plain = session.using(tree=Tree.root_only())
    guessing = session.using(tree=tree, mode=mode)
    for prompt in PROMPTS:
        expected = plain.generate(prompt, 120).token_ids
        assert guessing.generate(prompt, 120).token_ids == expected


def test_repetitive_text_takes_fewer_steps(tiny_engine: Path) -> None:
    # a tiny random model soon repeats itself, which is what guesses gain from
    session = Session.open(tiny_engine, tree=Tree.chain(4, 0).with_guesses(1), num_threads=1)
    answer = session.generate("Hello tree", 300, ignore_eos=True)
    index, steps, position = NgramIndex(), 0, 1
    tokens = answer.token_ids
    index.start([*answer.prompt_ids, tokens[0]])
    while position < len(tokens):
        guess = make_guess(index, 4)
        right = 0
        while right < len(guess) and guess[right : right + 1] == tokens[position + right :][:1]:
            right += 1
        index.extend(tokens[position : position + right + 1])
        position += right + 1
        steps += 1
    assert session.stats.num_steps == steps < len(tokens) - 1


def test_trees_with_guesses_are_serialized_and_described() -> None:
    tree = Tree.triangle().with_guesses(2)
    assert Tree.from_json(tree.to_json()) == tree
    assert Tree.from_json(Tree.triangle().to_json()).min_level == 0
    assert "guesses from level 2 on" in str(tree)
    assert read_tree("ngrams:3", 3) == Tree.chain(3, 0).with_guesses(1)
    with pytest.raises(TreeError, match="min_level is 13, not 0 to 12"):
        tree.with_guesses(13)
    with pytest.raises(TreeError, match="not a whole number"):
        Tree.from_json('{"nodes": [], "min_level": "two"}')
    with pytest.raises(TreeError, match="no tree 'ngrams:0'"):
        read_tree("ngrams:0", 3)
    with pytest.raises(TreeError, match="min_match is of an older bita-edge; calibrate the tree"):
        Tree.from_json('{"nodes": [], "min_match": 1}')
