"""Decoding on the tiny engine: trees equal plain decoding, limits are exact, buffers stay."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_engine import TINY_CAPACITY
from random_drafts import AR, drafting_adapter, logits_of_text, prompt_ids, random_tree

from bita.adapter import random_adapter
from bita.errors import EngineError, PromptError, TreeError
from bita.runtime.backends.cache import HostCache
from bita.runtime.session import Session
from bita.tree import Tree


@pytest.fixture(scope="module")
def session(tiny_engine: Path) -> Session:
    return Session.open(tiny_engine, num_threads=1)


@pytest.mark.parametrize("seed", range(12))
def test_trees_give_the_same_text_as_plain_decoding(session: Session, seed: int) -> None:
    adapter = drafting_adapter(session, prefix_length=seed % 4, seed=seed)
    plain = session.using(tree=AR, adapter=adapter)
    tree = session.using(tree=random_tree(seed), adapter=adapter, mode="tree")
    for number in range(4):
        prompt = prompt_ids(100 * seed + number, 1 + 37 * number)
        expected = plain.generate(prompt, 60, ignore_eos=True).token_ids
        assert tree.generate(prompt, 60, ignore_eos=True).token_ids == expected
    assert tree.stats.num_tokens == 4 * 59


def test_some_drafts_are_accepted(session: Session) -> None:
    """Without accepted drafts the equality above would not test commits."""
    taken = 0
    for seed in range(12):
        tree = random_tree(seed)
        drafting = session.using(tree=tree, adapter=drafting_adapter(session, 0, seed))
        drafting.generate(prompt_ids(seed), 60, ignore_eos=True)
        counts = drafting.stats.num_accepted
        taken += sum(count for path, count in counts.items() if {*path} - {1})
        cut = counts.total() - drafting.stats.num_tokens
        assert 0 <= cut <= tree.max_depth  # tokens of the last path beyond the limit
    assert taken > 10


@pytest.mark.parametrize("seed", range(6))
def test_exact_mode_is_bit_identical_to_plain_decoding(session: Session, seed: int) -> None:
    """The logits are identical too, whatever the tree and its drafts."""
    adapter = drafting_adapter(session, prefix_length=seed % 3, seed=seed)
    plain = session.using(tree=AR, adapter=adapter, mode="exact")
    exact = session.using(tree=Tree.triangle((4, 3, 2), 3), adapter=adapter, mode="exact")
    expected = logits_of_text(plain, prompt_ids(seed), 40)
    found = logits_of_text(exact, prompt_ids(seed), 40)
    assert exact.stats.num_steps < 45
    np.testing.assert_array_equal(np.array(found), np.array(expected))


def test_exact_mode_accepts_along_the_spine(session: Session) -> None:
    accepted_on_spine = 0
    for seed in range(20):
        adapter = drafting_adapter(session, 0, seed)
        exact = session.using(tree=Tree.triangle(), adapter=adapter, mode="exact")
        exact.generate(prompt_ids(seed), 40, ignore_eos=True)
        paths = [*exact.stats.num_accepted.elements()]
        accepted_on_spine += sum(map(bool, paths))
        assert {rank for path in paths for rank in path} <= {1}
    assert accepted_on_spine > 0


def test_prompts_in_pieces_give_the_same_text(session: Session) -> None:
    """A prompt of more than one piece continues as if its end had been decoded."""
    prompt = prompt_ids(5, session.backend.prefill_rows - 10)
    whole = session.generate(prompt, 60, ignore_eos=True).token_ids
    for cut in (8, 9, 10, 11, 30):
        rest = session.generate(prompt + whole[:cut], 60 - cut, ignore_eos=True).token_ids
        assert rest == whole[cut:]


@pytest.mark.parametrize("limit", range(1, 12))
def test_token_limit_is_exact(session: Session, limit: int) -> None:
    answer = session.generate(prompt_ids(1), limit, ignore_eos=True)
    assert len(answer.token_ids) == limit
    assert answer.finish_reason == "length"


def test_stop_strings_cut_the_text_as_in_plain_decoding(session: Session) -> None:
    plain = session.using(tree=AR)
    text = plain.generate("Hello tree", 60, ignore_eos=True).text
    stops = [text[at : at + 2] for at in range(0, len(text) - 2, 5)]
    for stop in stops:
        expected = plain.generate("Hello tree", 60, stop=stop, ignore_eos=True)
        found = session.generate("Hello tree", 60, stop=stop, ignore_eos=True)
        assert found.finish_reason == "stop"
        assert (found.text, found.token_ids) == (expected.text, expected.token_ids)
        assert stop not in found.text


def test_pieces_join_to_the_text(session: Session) -> None:
    stream = session.stream("Hello tree", 80, ignore_eos=True)
    pieces = list(stream)
    assert "".join(pieces) == stream.text
    assert stream.text == session.generate("Hello tree", 80, ignore_eos=True).text


def test_an_answer_can_fill_the_cache(session: Session) -> None:
    """The answer ends at the same token with and without a tree, and reports the capacity."""
    prompt = prompt_ids(2, 300)
    plain = session.using(tree=AR).generate(prompt, 1000, ignore_eos=True)
    tree = session.generate(prompt, 1000, ignore_eos=True)
    assert tree.finish_reason == plain.finish_reason == "capacity"
    assert tree.token_ids == plain.token_ids
    assert len(prompt) + len(tree.token_ids) == TINY_CAPACITY - session.adapter.prefix_length


def test_the_longest_prompt_fits_and_a_longer_one_is_refused(session: Session) -> None:
    longest = TINY_CAPACITY - session.adapter.prefix_length - 2
    assert len(session.generate(prompt_ids(3, longest), 5, ignore_eos=True).token_ids) == 2
    with pytest.raises(PromptError, match=f"has {longest + 1} tokens; this engine holds {longest}"):
        session.generate(prompt_ids(3, longest + 1), 5)


def test_buffers_do_not_move(session: Session) -> None:
    (step,), cache = session.decoder.steps, session.backend.cache
    assert isinstance(cache, HostCache)
    watched = [cache.slab, step.token_ids, step.top_ids]
    before = [array.ctypes.data for array in watched]
    session.generate(prompt_ids(4), 100, ignore_eos=True)
    now = [cache.slab, step.token_ids, step.top_ids]
    assert [array.ctypes.data for array in now] == before
    assert all(a is b for a, b in zip(now, watched, strict=True))


def test_greedy_steps_compute_no_logits(session: Session) -> None:
    other = session.using(tree=AR)
    other.generate(prompt_ids(4), 5)
    other.generate(prompt_ids(4), 5, temperature=0.7)
    other.generate(prompt_ids(4), 5)
    assert [step.logits for step in other.decoder.steps] == [None]


def test_a_dropped_session_frees_its_memory_at_once(tiny_engine: Path) -> None:
    opened = Session.open(tiny_engine, num_threads=1)
    opened.generate(prompt_ids(1, 300), 5)
    opened.margin(prompt_ids(1))
    gone: list[weakref.ref[Any]] = [weakref.ref(opened.decoder), weakref.ref(opened.backend)]
    gc.disable()
    try:
        del opened
        assert [each() for each in gone] == [None, None]
    finally:
        gc.enable()


def test_sessions_on_one_engine_can_alternate(session: Session) -> None:
    other = session.using(tree=AR)
    first = session.stream(prompt_ids(6), 20, ignore_eos=True)
    next(first)
    second = other.stream(prompt_ids(7), 20, ignore_eos=True)
    next(second)
    for _ in range(5):
        next(first)
        next(second)
    for answer, number in ((first, 6), (second, 7)):
        session.forget()
        alone = session.generate(prompt_ids(number), 20, ignore_eos=True)
        assert answer.run().token_ids == alone.token_ids


def test_another_session_does_not_change_a_running_answer(session: Session) -> None:
    answer = session.stream(prompt_ids(6), 20, ignore_eos=True)
    next(answer)
    session.using(tree=Tree.triangle())
    assert len(answer.run().token_ids) == 20


def test_messages_are_rendered_with_the_template(session: Session) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    text = "<|user|>Hi<|end|><|assistant|>"
    assert session.encode(messages) == session.encode(text)
    assert session.encode(messages)[-1] == session.encode("<|assistant|>")[0]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        ([], {}, "the prompt is empty"),
        ([5, 320], {}, r"must be in \[0, 320\); the prompt has 320"),
        ([-1], {}, "the prompt has -1"),
        ([{"role": "wizard", "content": "Hi"}], {}, "wizard"),
        (7, {}, "a prompt is text, messages or token ids, not 7"),
        ("Hi", {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ("Hi", {"stop": [""]}, "is empty"),
    ],
)
def test_invalid_prompts_are_refused(
    session: Session, prompt: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        session.generate(prompt, **options)


def test_trees_and_adapters_must_fit_the_engine(session: Session) -> None:
    with pytest.raises(TreeError, match=r"(?s)2 faults.*4 masks.*rank 17"):
        session.using(tree=Tree.triangle((17,), 4))
    identity = session.adapter.identity
    wide = random_adapter(type(identity)(**{**vars(identity), "hidden_size": 48}))
    with pytest.raises(EngineError, match="48 wide, the model is 32"):
        session.using(adapter=wide)


def test_stats_are_consistent(session: Session) -> None:
    tree = session.using(tree=Tree.triangle(), mode="tree")
    answer = tree.generate(prompt_ids(8), 50, ignore_eos=True)
    stats = tree.stats
    assert stats.num_tokens == len(answer.token_ids) - 1  # the first token came from the prefill
    assert stats.num_steps == len(stats.step_ms) == len(stats.backend_ms)
    assert stats.tokens_per_step == stats.num_tokens / stats.num_steps
    assert stats.num_prompt_tokens == 20
    assert all(whole >= part for whole, part in zip(stats.step_ms, stats.backend_ms, strict=True))
    assert sum(stats.acceptance.values()) == pytest.approx(
        (stats.num_accepted.total() - stats.num_steps) / stats.num_steps
    )
    tree.reset_stats()
    assert (tree.stats.num_steps, tree.stats.tokens_per_step, tree.stats.host_share) == (0, 0, 0)
