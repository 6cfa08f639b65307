"""Texts that share steps are bit-identical to each text alone, whatever they share."""

import gc
import random
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deadlines import stopped_if_it_hangs
from native_engines import FEATURES, native_engine, require_library
from random_drafts import drafting_adapter, prompt_ids, random_tree
from speed import thorough_but

from bita.errors import BitaError
from bita.runtime.backends.paged_cache import PagedCache
from bita.runtime.generation import Generation
from bita.runtime.session import Session
from bita.runtime.text.grammar import Grammar
from bita.tree import Tree
from bita.tree_table import TreeTable

CAPACITY = 400
OPTIONS: dict[str, Any] = {"ignore_eos": True, "logprobs": 3}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny int4 Llama with capacity 400, three masks and a prefix of 5."""
    require_library()
    return native_engine(FEATURES["long"], tmp_path_factory.mktemp("native"), "int4", CAPACITY).path


def page_bytes(session: Session) -> int:
    cache = session.backend.cache
    assert isinstance(cache, PagedCache)
    return cache.slab[:, 0].nbytes


def open_session(engine: Path, kept_pages: int = 1000, **options: Any) -> Session:
    kept_text_bytes = kept_pages * page_bytes(Session.open(engine, num_threads=1))
    return Session.open(engine, num_threads=1, kept_text_bytes=kept_text_bytes, **options)


def random_table(seed: int, slope: float) -> TreeTable:
    """Make a table of random trees, with and without guesses; a row costs `slope` plain steps."""
    trees = [random_tree(seed), random_tree(seed + 1).with_guesses(2), Tree.root_only(3)]
    table = TreeTable(tuple(trees), (0, 4), ((2, 1), (0, 1)))
    return table.with_costs([1 + slope * row for row in range(table.num_rows)])


def random_options(rng: random.Random, seed: int) -> dict[str, Any]:
    """Return random options: greedy, sampled, penalized or with a grammar, of any length."""
    grammar = {"grammar": Grammar.regex("[a-z ]{3,20}"), "ignore_eos": False}
    return {
        **OPTIONS,
        "max_new_tokens": rng.randint(1, 40),
        "seed": seed,
        **rng.choice([{}, {"temperature": 0.8}, {"repetition_penalty": 1.3}, grammar]),
    }


def assert_as_alone(other: Session, found: Generation, options: dict[str, Any]) -> None:
    """Assert that another session, which reads the whole prompt, gives the same answer."""
    other.forget()
    alone = other.generate(list(found.prompt_ids), **options)
    assert found.token_ids == alone.token_ids
    assert found.logprobs == alone.logprobs
    assert (found.text, found.finish_reason) == (alone.text, alone.finish_reason)


def num_held(session: Session) -> int:
    """Count the pages in use."""
    cache = session.backend.cache
    assert isinstance(cache, PagedCache)
    return cache.slab.shape[1] - cache.pages.pool.num_free


@pytest.mark.parametrize("slope", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("kept_pages", [0, 6, 1000])
@pytest.mark.parametrize("seed", thorough_but(range(3), 0))
def test_texts_that_join_and_leave_equal_each_text_alone(
    engine: Path, seed: int, kept_pages: int, slope: float
) -> None:
    """Up to nine run at once and some are cancelled; their prompts share beginnings, rows are free
    or expensive, and pages may be few.
    """
    rng = random.Random(seed)
    session = open_session(engine, kept_pages, keep_answers=rng.random() < 0.5)
    session = session.using(
        tree=random_table(seed, slope), adapter=drafting_adapter(session, rng.choice((0, 5, 17)), 1)
    )
    other = Session.open(engine, num_threads=1)
    begin = prompt_ids(seed, 60)
    jobs: list[tuple[Generation, dict[str, Any]]] = []
    running: list[Generation] = []
    with stopped_if_it_hangs():
        while len(jobs) < 24 or running:
            while len(running) < rng.randint(1, 9) and len(jobs) < 24:
                prompt = [*begin[: rng.randint(0, 60)], *prompt_ids(len(jobs), rng.randint(1, 90))]
                options = random_options(rng, len(jobs))
                answer = session.stream(prompt, **options)
                jobs.append((answer, options))
                running.append(answer)
            if rng.random() < 0.02:
                rng.choice(running).cancel()
            session.advance(running)
            running = [each for each in running if not each.has_ended]
    for answer, options in jobs:
        if answer.finish_reason != "cancelled":
            assert_as_alone(other, answer, options)
    session.forget()
    session.generate([7], 1)
    assert num_held(session) <= 2 + 1  # the prefix, and [7]


def test_a_shared_system_prompt_is_read_once(engine: Path) -> None:
    session = open_session(engine)
    begin = prompt_ids(1, 200)
    first, *others = [
        session.stream([*begin, *prompt_ids(seed, 10)], max_new_tokens=8, ignore_eos=True)
        for seed in range(5)
    ]
    session.run_together([first, *others])
    assert first.num_reused == 0
    assert all(each.num_reused >= 200 for each in others)
    late = session.stream([*begin, *prompt_ids(9, 10)], max_new_tokens=8)
    session.run_together([late])
    assert late.num_reused >= 200


def test_a_joining_text_shares_the_beginning_of_a_running_one(engine: Path) -> None:
    session, begin = open_session(engine), prompt_ids(1, 200)
    first = session.stream([*begin, 7], max_new_tokens=60, ignore_eos=True)
    for _ in range(5):
        next(first)
    second = session.stream([*begin, 8, 9], max_new_tokens=8, ignore_eos=True)
    session.run_together([first, second])
    assert second.num_reused >= 200


def test_running_answers_continue_while_a_long_prompt_is_read(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step adds a token and reads a piece as long as time allows; a short prompt does not wait
    until the long one is read.
    """
    monkeypatch.setattr("bita.runtime.decoding.joint_decoder.MAX_GAP_MS", 0.001)
    monkeypatch.setattr("bita.runtime.decoding.joint_decoder.MIN_PIECE", 16)
    session = open_session(engine)
    running = session.stream(prompt_ids(1), max_new_tokens=300, ignore_eos=True)
    session.advance([running])
    long = session.stream(prompt_ids(2, 300), max_new_tokens=4, ignore_eos=True)
    short = session.stream(prompt_ids(3, 6), max_new_tokens=4, ignore_eos=True)
    rows: list[int] = []
    session.record(lambda name, began, ended, num_rows: rows.append(num_rows))
    tokens = len(running.token_ids)
    first: dict[str, int] = {}
    for step in range(80):
        session.advance([running, long, short])
        assert len(running.token_ids) > tokens
        tokens = len(running.token_ids)
        for name, answer in (("long", long), ("short", short)):
            if answer.token_ids:
                first.setdefault(name, step)
    assert first["short"] < 3
    assert 300 / 16 <= first["long"] < 300 / 8 + 3
    assert max(rows) <= 16 + 3 + session.tree.num_rows + 4


def test_a_failed_answer_does_not_end_the_others(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, other = open_session(engine), Session.open(engine, num_threads=1)
    answers = [session.stream(prompt_ids(seed), max_new_tokens=12, **OPTIONS) for seed in range(3)]
    chooser = answers[1].sequence.chooser

    def fails(logits: np.ndarray) -> int:
        raise BitaError("no more")

    session.advance(answers)
    monkeypatch.setattr(chooser, "choose", fails)
    with pytest.raises(BitaError, match="no more"):
        session.run_together(answers)
    for answer in (answers[0], answers[2]):
        assert_as_alone(other, answer, {**OPTIONS, "max_new_tokens": 12})


def test_a_failed_answer_does_not_end_the_others_without_shared_steps(
    tiny_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.open(tiny_engine, num_threads=1)
    assert not session.shares_steps
    answers = [session.stream(prompt_ids(seed), max_new_tokens=6, **OPTIONS) for seed in range(3)]

    def fails(logits: np.ndarray) -> int:
        raise BitaError("no more")

    monkeypatch.setattr(answers[0].sequence.chooser, "choose", fails)
    with pytest.raises(BitaError, match="no more"):
        session.run_together(answers)
    assert [answer.finish_reason for answer in answers] == ["cancelled", "length", "length"]


def test_a_failed_step_ends_only_its_own_answers(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, other = open_session(engine), Session.open(engine, num_threads=1)
    answers = [session.stream(prompt_ids(seed), max_new_tokens=12) for seed in range(3)]
    session.advance(answers)
    with monkeypatch.context() as patches:
        patches.setattr(session.backend, "run", lambda binding: (_ for _ in ()).throw(KeyError()))
        with pytest.raises(KeyError):
            session.advance(answers)
    again = [session.stream(prompt_ids(seed), max_new_tokens=12, **OPTIONS) for seed in range(3)]
    session.run_together(again)
    for answer in again:
        assert_as_alone(other, answer, {**OPTIONS, "max_new_tokens": 12})


def test_several_answers_equal_each_answer_alone(engine: Path) -> None:
    session, other = open_session(engine), Session.open(engine, num_threads=1)
    found = session.generate_several(prompt_ids(1), 4, 20, temperature=1.0, seed=5)
    for number, answer in enumerate(found):
        other.forget()
        alone = other.start(prompt_ids(1), options_of(20), seed=5, choice=number).run()
        assert answer.token_ids == alone.token_ids
    assert len({tuple(answer.token_ids) for answer in found}) > 1
    assert sum(answer.num_reused for answer in found[1:]) >= 3 * 16


def options_of(max_new_tokens: int) -> Any:
    from bita.runtime.options import Options

    return Options(max_new_tokens=max_new_tokens, temperature=1.0)


def answers_of(session: Session, seeds: Sequence[int], **options: Any) -> list[Generation]:
    return [session.stream(prompt_ids(seed), **{**OPTIONS, **options}) for seed in seeds]


def test_texts_of_two_adapters_alternate(engine: Path) -> None:
    """They cannot share a step, since each has its own prefix."""
    session, other = open_session(engine), Session.open(engine, num_threads=1)
    second = session.using(adapter=drafting_adapter(session, 17, 4))
    answers = [
        *answers_of(session, range(3), max_new_tokens=20),
        *answers_of(second, range(3), max_new_tokens=20),
    ]
    session.run_together(answers)
    for answer in answers:
        assert_as_alone(other, answer, {**OPTIONS, "max_new_tokens": 20})


def test_the_last_remaining_text_continues_without_reading_again(engine: Path) -> None:
    """It moves to the cache that single steps use."""
    session, other = open_session(engine, kept_pages=0), Session.open(engine, num_threads=1)
    short, long = (session.stream(prompt_ids(seed), 30, **OPTIONS) for seed in range(2))
    while len(long.token_ids) < 10:
        session.advance([short, long])
    short.cancel()
    rows: list[tuple[str, int]] = []
    session.record(lambda name, began, ended, num_rows: rows.append((name, num_rows)))
    cache = session.backend.cache
    assert isinstance(cache, PagedCache)
    length = len(long.token_ids)
    session.advance([short, long])
    assert short.finish_reason == "cancelled"
    assert len(long.token_ids) > length
    assert "prefill" not in [name for name, _ in rows]
    assert cache.length == 20 + len(long.token_ids) - 1
    long.run()
    assert "prefill" not in [name for name, _ in rows]
    assert_as_alone(other, long, {**OPTIONS, "max_new_tokens": 30})


def test_drafts_are_used_only_where_rows_are_cheap(engine: Path) -> None:
    """A table without costs does not say that rows are cheap."""
    sizes = {}
    for name, slope in (("free", 0.0), ("expensive", 1.0), ("unknown", None)):
        table = random_table(3, slope or 0.0)
        tree = table if slope is not None else TreeTable(table.trees, table.levels, table.by_state)
        session = open_session(engine).using(tree=tree)
        answers = answers_of(session, range(4), max_new_tokens=40)
        session.run_together(answers)
        stats = session.stats
        sizes[name] = (stats.num_rows - 4 * 20) / len(stats.step_ms)
    assert sizes["expensive"] <= 4
    assert sizes["unknown"] <= 4
    assert sizes["free"] > 3 * 4


def test_a_dropped_session_frees_its_memory_at_once(engine: Path) -> None:
    session = open_session(engine)
    other = session.using(tree=random_table(1, 0.0))
    for each in (session, other):
        each.run_together(answers_of(each, range(3), max_new_tokens=8))
    gone: list[weakref.ref[Any]] = [weakref.ref(other.decoder), weakref.ref(session.backend)]
    gc.disable()
    try:
        del other, each
        assert gone[0]() is None
        del session
        assert gone[1]() is None
    finally:
        gc.enable()
