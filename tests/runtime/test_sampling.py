"""Sampling: exact distributions, and the same tokens with and without a tree."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from speed import slow_but

from bita.adapter import random_adapter
from bita.runtime.decoding.chooser import Chooser, Penalties
from bita.runtime.decoding.sampling import (
    BLOCK,
    Candidates,
    Draws,
    best_tokens,
    candidates,
    log_partition,
)
from bita.runtime.options import Options
from bita.runtime.session import Session
from bita.tree import Tree
from bita.tree_table import TreeTable

AR = Tree.root_only()
ROW = np.array([1.5, -2.0, 0.5, 3.0, 3.0, -1.0, 0.0, 2.5, -4.0, 1.0, 0.7, -0.3], np.float32)
SETTINGS: list[Mapping[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.6, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.8, "min_p": 0.1},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.7, "repetition_penalty": 1.3},
    {"temperature": 1.0, "presence_penalty": 0.8, "frequency_penalty": 0.4},
    {"temperature": 1.0, "logit_bias": {5: 4.0, 9: -100.0}},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.5},
    {"temperature": 1.1, "stop_token_ids": [77, 78], "logprobs": 3},
]


@pytest.fixture(scope="module")
def session(tiny_engine: Path) -> Session:
    return Session.open(tiny_engine, num_threads=1)


def prompt_ids(seed: int, length: int = 12) -> list[int]:
    return np.random.default_rng(seed).integers(4, 320, length).tolist()


def probabilities(row: np.ndarray, **options: Any) -> np.ndarray:
    found = candidates(row.copy(), Options(**{"temperature": 1.0, **options}))
    dense = np.zeros(len(row))
    ids = np.arange(len(row)) if found.ids is None else found.ids
    dense[ids] = found.weights / found.weights.sum(dtype=np.float64)
    return dense


def chi_square_limit(num_cells: int) -> float:
    """Return the chi-square value for num_cells that is exceeded once in a million (Wilson)."""
    degrees = num_cells - 1
    return degrees * (1 - 2 / (9 * degrees) + 4.75 * math.sqrt(2 / (9 * degrees))) ** 3


def chi_square(counts: Mapping[Any, int], expected: Mapping[Any, float]) -> float:
    assert counts.keys() <= expected.keys()
    return sum((counts.get(cell, 0) - mean) ** 2 / mean for cell, mean in expected.items())


@pytest.fixture(scope="module")
def drawn() -> list[float]:
    """One number from each of 100,000 seeds."""
    return [Draws(seed, 0, 17).next() for seed in range(100_000)]


@pytest.mark.parametrize("options", slow_but(SETTINGS[:5], SETTINGS[4]))
def test_draws_follow_the_distribution(options: Mapping[str, Any], drawn: list[float]) -> None:
    """The vocabulary has 12 tokens."""
    found = candidates(ROW.copy(), Options(**options))
    draws = Counter(map(found.token, drawn))
    wanted = {
        token: 100_000 * share for token, share in enumerate(probabilities(ROW, **options)) if share
    }
    assert len(wanted) > 3
    assert chi_square(draws, wanted) < chi_square_limit(len(wanted))


def test_a_wrong_distribution_is_detected(drawn: list[float]) -> None:
    """The chi-square test above can fail: it detects a temperature that is 3 % off."""
    found = candidates(ROW.copy(), Options(temperature=1.03))
    draws = Counter(map(found.token, drawn))
    wanted = {token: 100_000 * share for token, share in enumerate(probabilities(ROW))}
    assert chi_square(draws, wanted) > chi_square_limit(len(wanted))


@pytest.mark.slow
def test_sampled_trees_follow_the_joint_distribution(session: Session) -> None:
    """A tree decodes two tokens for each of 3,000 seeds; eight choices each give 64 cells."""
    prompt = prompt_ids(3)
    options: dict[str, Any] = {"temperature": 0.8, "top_k": 8}

    def next_tokens(ids: list[int]) -> dict[int, float]:
        (top,) = session.generate(ids, 1, logprobs=8, ignore_eos=True).logprobs
        shares = {token: math.exp(logprob / 0.8) for token, logprob in top.best}
        return {token: share / sum(shares.values()) for token, share in shares.items()}

    expected = {
        (first, second): 3000 * share * after
        for first, share in next_tokens(prompt).items()
        for second, after in next_tokens([*prompt, first]).items()
    }
    tree = session.using(tree=Tree.triangle((8, 3)), mode="tree")
    answers = (
        tree.generate(prompt, 2, ignore_eos=True, seed=seed, **options).token_ids
        for seed in range(3000)
    )
    pairs = Counter((first, second) for first, second in answers)
    rare = {cell for cell, mean in expected.items() if mean < 5}
    common: dict[Any, float] = {cell: mean for cell, mean in expected.items() if cell not in rare}
    common["rare"] = sum(expected[cell] for cell in rare)
    counts = Counter("rare" if cell in rare else cell for cell in pairs.elements())
    assert chi_square(counts, common) < chi_square_limit(len(common))


def random_trees(seed: int) -> Tree | TreeTable:
    rng = np.random.default_rng(seed)
    trees = (
        Tree.triangle((6, 4, 2), 3),
        Tree.chain(3),
        Tree.chain(5, 0).with_guesses(1),
        Tree.root_only(2),
        Tree.triangle((3, 2), 2).with_guesses(2),
    )
    if rng.random() < 0.4:
        return trees[int(rng.integers(len(trees)))]
    by_state = rng.integers(len(trees), size=(4, 3)).tolist()
    return TreeTable(trees, (0, 1, 3), tuple(map(tuple, by_state)))


@pytest.mark.parametrize("setting", slow_but(range(len(SETTINGS)), 0, 4, 9))
def test_trees_sample_the_same_text_as_plain_decoding(session: Session, setting: int) -> None:
    """Each setting has 30 prompts and seeds, and adapters whose drafts are often right."""
    options, num_accepted = SETTINGS[setting], 0
    for number in range(30):
        seed = 1000 * setting + number
        adapter = random_adapter(session.adapter.identity, 3, number % 4, scale=0.4, seed=seed % 7)
        plain = session.using(tree=AR, adapter=adapter)
        mode = "exact" if number % 2 else "tree"
        tree = session.using(tree=random_trees(seed), adapter=adapter, mode=mode)
        prompt = prompt_ids(seed, 1 + 5 * (number % 9))
        expected = plain.generate(prompt, 40, seed=seed, **options)
        session.forget()
        found = tree.generate(prompt, 40, seed=seed, **options)
        assert found.token_ids == expected.token_ids
        assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)
        assert [each.token_id for each in found.logprobs] == (
            found.token_ids if options.get("logprobs") else []
        )
        for left, right in zip(found.logprobs, expected.logprobs, strict=True):
            assert left.logprob == pytest.approx(right.logprob, abs=1e-4)
        num_accepted += tree.stats.num_tokens - tree.stats.num_steps
    assert num_accepted > 5


def test_the_same_seed_gives_the_same_answer(session: Session) -> None:
    first = session.generate(prompt_ids(1), 30, temperature=1.0)
    assert 0 <= first.seed < 2**64
    again = session.generate(prompt_ids(1), 30, temperature=1.0, seed=first.seed)
    other = session.generate(prompt_ids(1), 30, temperature=1.0, seed=first.seed ^ 1)
    assert again.token_ids == first.token_ids != other.token_ids


def test_several_answers_differ_and_share_the_prompt(session: Session) -> None:
    session.forget()
    session.reset_stats()
    prompt = prompt_ids(5, 300)
    answers = session.generate_several(prompt, 4, 20, temperature=1.0, seed=3)
    assert len({tuple(answer.token_ids) for answer in answers}) == 4
    assert session.stats.num_reused_tokens == 3 * 299
    session.forget()
    assert session.generate(prompt, 20, temperature=1.0, seed=3).token_ids == answers[0].token_ids


def test_a_draw_depends_on_seed_choice_and_position() -> None:
    for key in ((7, 0, 3), (2**64 - 1, 5, 2**20), (0, 0, 0)):
        seed, choice, position = key
        draws = Draws(*key)
        for place in range(position, position + 5):
            assert draws.next() == (philox(seed, choice, place) >> 11) / 2**53


def philox(seed: int, choice: int, position: int) -> int:
    """Compute the first word of Philox4x64-10 (Salmon et al. 2011); numpy increments first."""
    low = 2**64 - 1
    counter, key = [position + 1, 0, 0, 0], [seed, choice]
    for _ in range(10):
        first, second = counter[0] * 0xD2E7470EE14C6C93, counter[2] * 0xCA5A826395121157
        counter = [
            (second >> 64) ^ counter[1] ^ key[0],
            second & low,
            (first >> 64) ^ counter[3] ^ key[1],
            first & low,
        ]
        key = [(key[0] + 0x9E3779B97F4A7C15) & low, (key[1] + 0xBB67AE8584CAA73B) & low]
    return counter[0]


def test_a_cumulative_distribution_is_inverted_exactly() -> None:
    """It is compared with a plain cumulative sum, across block borders and zero weights."""
    rng = np.random.default_rng(0)
    for size in (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5):
        weights = rng.integers(0, 4, size).astype(np.float32)
        weights[rng.integers(size)] = 1
        sums = np.cumsum(weights, dtype=np.float64)
        numbers = [*rng.random(200), 0.0, 1 - 2**-53, *((sums[:-1] / sums[-1]).tolist())]
        for number in (each for each in numbers if each < 1):
            place = Candidates(None, weights).token(number)
            assert place == int(np.searchsorted(sums, number * sums[-1], side="right"))
            assert weights[place] > 0


def test_top_k_top_p_and_min_p_match_values_computed_by_hand() -> None:
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    by_hand: list[tuple[dict[str, Any], list[float]]] = [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.65}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
        ({"min_p": 0.6}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"temperature": 1e-30}, [1, 0, 0, 0]),
        ({"temperature": 1e30}, [0.25] * 4),
    ]
    for options, expected in by_hand:
        np.testing.assert_allclose(probabilities(row, **options), expected, atol=1e-6)


def test_tied_tokens_at_the_cutoff_are_all_kept() -> None:
    row = np.array([1.0, 2.0, 1.0, 0.0], np.float32)
    assert probabilities(row, top_k=2).nonzero()[0].tolist() == [0, 1, 2]
    assert probabilities(row, top_p=0.6).nonzero()[0].tolist() == [0, 1, 2]


def test_options_apply_in_the_order_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    rng = np.random.default_rng(1)
    for number in range(40):
        row = rng.normal(0, 2, 300).astype(np.float32)
        seen = rng.integers(0, 300, 20).tolist()
        options = Options(
            temperature=0.5 + rng.random(),
            top_k=int(rng.integers(5, 100)),
            top_p=0.5 + 0.5 * rng.random(),
            min_p=0.2 * rng.random(),
            repetition_penalty=1.2,
        )
        theirs = LogitsProcessorList(
            [
                RepetitionPenaltyLogitsProcessor(options.repetition_penalty),
                TemperatureLogitsWarper(options.temperature),
                TopKLogitsWarper(options.top_k),
                TopPLogitsWarper(options.top_p),
                MinPLogitsWarper(options.min_p),
            ]
        )(torch.tensor([seen]), torch.from_numpy(row.copy())[None])
        expected = torch.softmax(theirs[0], 0).numpy()
        Penalties(options, seen).apply(row)
        found = candidates(row, options)
        dense = np.zeros(300)
        dense[found.ids] = found.weights / found.weights.sum()
        np.testing.assert_allclose(dense, expected, atol=1e-6, err_msg=str(number))


def test_penalties_match_values_computed_by_hand() -> None:
    options = Options(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    penalties = Penalties(options, [0, 1, 1])
    row = np.array([4.0, -4.0, 4.0, 4.0], np.float32)
    penalties.apply(row)
    assert row.tolist() == [2, -8, 4, 4]  # the prompt counts for repetition only
    for token in (1, 2, 2):
        penalties.count(token)
    row = np.array([4.0, -4.0, 4.0, 4.0], np.float32)
    penalties.apply(row)
    assert row.tolist() == [2, -8.75, 1, 4]


def test_frequency_penalties_grow_with_the_text() -> None:
    penalties = Penalties(Options(frequency_penalty=1.0), range(50))
    for token in [*range(200), *range(100)]:
        penalties.count(token)
    row = np.zeros(300, np.float32)
    penalties.apply(row)
    assert row.tolist() == [-2.0] * 100 + [-1.0] * 100 + [0.0] * 100


def test_logprobs_are_the_models_own(session: Session) -> None:
    """The options do not change them, and asking for them does not change the answer."""
    options: dict[str, Any] = {"temperature": 0.7, "top_k": 3, "seed": 4, "ignore_eos": True}
    answer = session.generate(prompt_ids(8), 12, logprobs=5, frequency_penalty=1.0, **options)
    plain = session.generate(prompt_ids(8), 12, frequency_penalty=1.0, **options)
    assert answer.token_ids == plain.token_ids
    assert len(answer.logprobs) == 12
    for place, each in enumerate(answer.logprobs):
        text = [*prompt_ids(8), *answer.token_ids[:place]]
        (alone,) = session.generate(text, 1, logprobs=20, ignore_eos=True).logprobs
        assert [token for token, _ in each.best] == [token for token, _ in alone.best[:5]]
        shares = dict(alone.best)
        if each.token_id in shares:
            assert each.logprob == pytest.approx(shares[each.token_id], abs=1e-4)
        assert sum(math.exp(value) for value in shares.values()) < 1 + 1e-5


def test_best_tokens_and_the_partition_match_a_plain_computation() -> None:
    assert best_tokens(ROW, 4) == [3, 4, 7, 0]
    assert best_tokens(ROW, 0) == []
    assert best_tokens(ROW, 99) == sorted(range(12), key=lambda token: -ROW[token])
    assert log_partition(ROW) == pytest.approx(math.log(np.exp(ROW.astype(np.float64)).sum()))


def test_the_best_of_tied_tokens_is_the_lowest() -> None:
    chooser = Chooser(Options(logit_bias={7: 0.5}), [1], [], 0)
    assert chooser.choose(ROW.copy()) == 3


def test_stop_tokens_end_an_answer(session: Session) -> None:
    answer = session.generate(prompt_ids(2), 30, ignore_eos=True)
    stopped = session.generate(
        prompt_ids(2), 30, ignore_eos=True, stop_token_ids=[answer.token_ids[9]]
    )
    first = answer.token_ids.index(answer.token_ids[9])
    assert stopped.token_ids == answer.token_ids[: first + 1]
    assert stopped.finish_reason == "stop"
    assert answer.text.startswith(stopped.text)


def test_greedy_answers_need_no_logits(session: Session) -> None:
    assert not Options().needs_logits
    assert not Options(seed=4, stop_token_ids=[1], timeout_s=1.0, top_k=4).needs_logits
    assert Options(logit_bias={1: 2.0}).needs_logits
