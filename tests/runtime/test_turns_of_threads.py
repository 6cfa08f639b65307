"""Threads that use one session share steps, and each gets the same text as alone."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from deadlines import stopped_if_it_hangs
from native_engines import FEATURES, native_engine, require_library
from random_drafts import AR, prompt_ids

from bita.errors import EngineError, PromptError
from bita.runtime.generation import Generation
from bita.runtime.session import Session

OPTIONS: dict[str, Any] = {"ignore_eos": True}
NUM_THREADS = 8


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_library()
    return native_engine(FEATURES["long"], tmp_path_factory.mktemp("native"), "int4", 400).path


@pytest.fixture(params=["native", "copied"])
def session(request: pytest.FixtureRequest, tiny_engine: Path) -> Session:
    """A session on an engine whose texts share steps, or on one whose texts alternate in slices."""
    path = request.getfixturevalue("native") if request.param == "native" else tiny_engine
    return Session.open(path, num_threads=1)


def shares_steps(session: Session) -> bool:
    return session.backend.joint_step(session.adapter) is not None


def run_in_threads(work: Callable[[int], Any], count: int = NUM_THREADS) -> list[Any]:
    with stopped_if_it_hangs(), ThreadPoolExecutor(count) as pool:
        return [each.result() for each in [pool.submit(work, number) for number in range(count)]]


def test_threads_get_the_same_texts_as_alone(session: Session) -> None:
    """Some threads run answers to the end, some iterate, some leave in the middle."""
    other = Session.open(session.engine.path, num_threads=1)

    def alone(seed: int) -> list[int]:
        return other.generate(prompt_ids(seed), 30, **OPTIONS).token_ids

    def ask(number: int) -> list[tuple[int, list[int]]]:
        rng, found = random.Random(number), []
        for seed in range(10 * number, 10 * number + 6):
            answer = session.stream(prompt_ids(seed), 30, **OPTIONS)
            way = rng.choice(("run", "iterate", "leave"))
            if way == "run":
                answer.run()
            else:
                for count, _ in enumerate(answer):
                    if way == "leave" and count == 5:
                        answer.cancel()
            found.append((seed, answer.token_ids))
        return found

    session.reset_stats()
    for found in run_in_threads(ask):
        for seed, token_ids in found:
            assert token_ids == alone(seed)[: len(token_ids)]
    if shares_steps(session):
        assert len(session.stats.step_ms) < session.stats.num_steps / 2


def test_threads_share_steps_when_they_run_to_the_end(session: Session) -> None:
    if not shares_steps(session):
        pytest.skip("texts alternate in slices")
    plain, started = session.using(tree=AR), threading.Barrier(NUM_THREADS)

    def ask(number: int) -> list[int]:
        started.wait()
        return plain.generate(prompt_ids(number), 100, **OPTIONS).token_ids

    run_in_threads(ask)
    stats = plain.stats
    assert stats.num_steps == NUM_THREADS * 99
    assert len(stats.step_ms) < 2 * 99
    assert stats.num_rows >= stats.num_steps


def test_threads_may_use_different_trees(session: Session) -> None:
    """Sessions with the same tree on one engine share steps."""
    sessions = [session, session.using(tree=AR)]
    alone = [session.generate(prompt_ids(seed), 40, **OPTIONS).token_ids for seed in range(8)]
    found = run_in_threads(
        lambda number: sessions[number % 2].generate(prompt_ids(number), 40, **OPTIONS).token_ids
    )
    assert found == alone


def test_an_interrupt_in_one_thread_does_not_corrupt_the_others(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It occurs in the middle of a step, in whichever thread runs that step."""
    alone = [session.generate(prompt_ids(seed), 40, **OPTIONS).token_ids for seed in range(6)]
    rule = type(session.stream([5])._rule)
    feed, interrupts = rule.feed, iter([False] * 60 + [True])

    def feed_or_interrupt(self: Any, token: int) -> None:
        feed(self, token)
        if next(interrupts, False):
            raise KeyboardInterrupt

    monkeypatch.setattr(rule, "feed", feed_or_interrupt)

    def ask(number: int) -> list[int] | str:
        answer = session.stream(prompt_ids(number), 40, **OPTIONS)
        try:
            return answer.run().token_ids
        except (KeyboardInterrupt, EngineError) as error:
            assert answer.finish_reason == "cancelled"
            return type(error).__name__

    found = run_in_threads(ask, 6)
    assert found.count("KeyboardInterrupt") == 1
    assert found.count("EngineError") <= 1  # the owner of the interrupted step's tokens
    wrong = [each for each, right in zip(found, alone, strict=True) if each != right]
    assert all(isinstance(each, str) for each in wrong)


def test_a_failed_answer_raises_only_in_its_own_thread(session: Session) -> None:
    def ask(number: int) -> Any:
        answer = session.stream(prompt_ids(number), 30, **OPTIONS, logprobs=0)
        if number == 3:
            answer.sequence.chooser.choose = fail  # type: ignore[method-assign, union-attr]
        try:
            return answer.run().token_ids
        except PromptError as error:
            return str(error)

    def fail(logits: Any) -> int:
        raise PromptError("too complex")

    found = run_in_threads(ask)
    assert [type(each) for each in found].count(list) == NUM_THREADS - 1
    assert found[3] == "too complex"


def test_deadlines_hold_with_many_threads(session: Session) -> None:
    def ask(number: int) -> Generation:
        timeout_s = 0.05 if number % 2 else None
        return session.stream(prompt_ids(number), 300, **OPTIONS, timeout_s=timeout_s).run()

    for number, answer in enumerate(run_in_threads(ask)):
        ends = ("timeout", "length", "capacity") if number % 2 else ("length", "capacity")
        assert answer.finish_reason in ends


def test_a_thread_that_holds_the_lock_can_generate(session: Session) -> None:
    """The others wait and are served after it."""
    inside = threading.Event()

    def ask(number: int) -> list[int]:
        if number == 0:
            with session.lock:
                inside.set()
                return session.generate(prompt_ids(0), 20, **OPTIONS).token_ids
        inside.wait(10)
        return session.generate(prompt_ids(number), 20, **OPTIONS).token_ids

    found = run_in_threads(ask, 4)
    assert found == [
        session.generate(prompt_ids(seed), 20, **OPTIONS).token_ids for seed in range(4)
    ]
