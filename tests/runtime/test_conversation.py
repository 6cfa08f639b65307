"""Turns, forks and threads on one engine: only new tokens are computed, and texts do not change."""

import os
import threading
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

from bita.errors import PromptError
from bita.runtime.generation import Generation
from bita.runtime.session import Session
from bita.tree import Tree

SYSTEM = {"role": "system", "content": "Short answers."}


@pytest.fixture
def session(tiny_engine: Path) -> Session:
    return Session.open(tiny_engine, num_threads=1)


def prompt_ids(seed: int, length: int = 20) -> list[int]:
    return np.random.default_rng(seed).integers(4, 320, length).tolist()


def next_logprobs(session: Session, ids: list[int]) -> dict[int, float]:
    (logprob,) = session.generate(ids, 1, logprobs=20, ignore_eos=True).logprobs
    return dict(logprob.best)


def test_a_second_turn_computes_only_its_own_tokens(session: Session) -> None:
    talk = session.conversation([SYSTEM])
    first = talk.send("Hello tree", max_new_tokens=24).run()
    second = talk.send("And then?", max_new_tokens=24).run()
    ends = first.finish_reason == "eos"
    new = session.encode("<|end|><|user|>And then?<|end|><|assistant|>")
    known = len(first.prompt_ids) + len(first.token_ids) - ends
    assert len(second.prompt_ids) == known + len(new)
    # the last token of an answer was emitted but not fed, unless it is inside an accepted path
    assert 0 <= known - second.num_reused <= 1
    session.forget()
    alone = session.generate(list(second.prompt_ids), 24)
    assert alone.num_reused == 0
    assert alone.token_ids == second.token_ids
    assert [message["role"] for message in talk.messages] == [
        *("system", "user", "assistant", "user", "assistant")
    ]
    assert talk.messages[2]["content"] == first.text


def test_reused_rows_are_bit_identical_to_computed_ones(session: Session) -> None:
    """This holds in mode "exact" for rows of decode steps, of a prompt, and of the store."""
    exact = session.using(tree=Tree.triangle((4, 3, 2), 3), mode="exact")
    first = exact.generate(prompt_ids(1, 40), 60, ignore_eos=True)
    text = [*first.prompt_ids, *first.token_ids]
    reused = next_logprobs(exact, text)
    assert exact.stats.num_reused_tokens >= len(text) - 2
    exact.forget()
    assert next_logprobs(exact, text) == reused
    kept = Session.open(session.engine.path, num_threads=1, mode="exact", keep_answers=True)
    answer = kept.generate(text[:40], 60, ignore_eos=True)
    kept.generate(prompt_ids(2, 50), 5)
    assert kept.stats.num_reused_tokens == 0
    assert next_logprobs(kept, [*text[:40], *answer.token_ids]) == reused
    assert kept.stats.num_reused_tokens >= 98


@pytest.mark.slow
def test_interleaved_answers_equal_separate_ones(session: Session) -> None:
    """Five streams take steps in random order; the store is too small for some of them."""
    for kept_text_bytes in (0, 60_000, 1 << 20):
        shared = Session.open(session.engine.path, num_threads=1, kept_text_bytes=kept_text_bytes)
        prompts = [prompt_ids(3, 30), prompt_ids(4, 290), prompt_ids(3, 50), prompt_ids(5), [7]]
        streams = [
            shared.stream(prompt, 40, temperature=0.8 * (number % 2), seed=number, ignore_eos=True)
            for number, prompt in enumerate(prompts)
        ]
        rng = np.random.default_rng(0)
        while running := [each for each in streams if each.finish_reason is None]:
            next(running[int(rng.integers(len(running)))])
        assert shared.decoder.shared_cache.store.num_bytes <= kept_text_bytes
        for number, (prompt, stream) in enumerate(zip(prompts, streams, strict=True)):
            shared.forget()
            alone = shared.generate(
                prompt, 40, temperature=0.8 * (number % 2), seed=number, ignore_eos=True
            )
            assert stream.token_ids == alone.token_ids


@pytest.mark.slow
def test_threads_can_share_a_session(session: Session) -> None:
    """Each of eight threads has its own two-turn conversations and answers."""
    jobs = [(number, prompt_ids(number, 5 + 7 * number)) for number in range(24)]
    expected = {}
    for number, prompt in jobs:
        session.forget()
        expected[number] = session.generate(prompt, 30, seed=number, temperature=0.5).token_ids
    found: dict[int, Any] = {}

    def work(mine: list[tuple[int, list[int]]]) -> None:
        for number, prompt in mine:
            talk = session.conversation()
            talk.send(f"Question {number}", max_new_tokens=5).run()
            stream = session.stream(prompt, 30, seed=number, temperature=0.5)
            for _ in stream:
                os.sched_yield()  # lets threads alternate
            found[number] = stream.token_ids
            answer = talk.send("More", max_new_tokens=5).run()
            assert answer.num_reused > 8 or not session.decoder.shared_cache.store.max_bytes

    threads = [threading.Thread(target=work, args=(jobs[start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_forks_continue_independently(session: Session) -> None:
    talk = session.conversation([SYSTEM])
    talk.send("Hello tree", max_new_tokens=30).run()
    fork = talk.fork()
    left = talk.send("Left?", max_new_tokens=20).run()
    right = fork.send("Right, or straight on?", max_new_tokens=20).run()
    again = talk.send("Left again?", max_new_tokens=20).run()
    shared = len(talk._known.ids)
    assert right.num_reused >= len(left.prompt_ids) - 20
    assert again.num_reused >= len(left.prompt_ids) + len(left.token_ids) - 2
    assert shared > 0
    assert talk.messages[:3] == fork.messages[:3]
    assert [len(talk.messages), len(fork.messages)] == [7, 5]
    for each in (left, right, again):
        session.forget()
        alone = session.generate(list(each.prompt_ids), 20)
        assert alone.token_ids == each.token_ids


def test_a_new_message_cancels_the_running_answer(session: Session) -> None:
    talk = session.conversation()
    first = talk.send("Hello tree", max_new_tokens=200, ignore_eos=True)
    for _ in range(3):
        next(first)
    second = talk.send("Stop", max_new_tokens=5).run()
    assert first.finish_reason == "cancelled"
    assert talk.messages[1] == {"role": "assistant", "content": first.text}
    assert first.text
    assert second.num_reused >= len(first.prompt_ids)
    assert talk.undo() == "Stop"
    assert talk.undo() == "Hello tree"
    assert talk.messages == []
    with pytest.raises(PromptError, match="no message to undo"):
        talk.undo()


def test_an_overflow_is_refused_without_changing_the_conversation(session: Session) -> None:
    talk = session.conversation([SYSTEM])
    talk.send("Hello tree", max_new_tokens=200, ignore_eos=True).run()
    before = [*talk.messages]
    with pytest.raises(PromptError, match="this engine holds"):
        talk.send("word " * 90)
    assert talk.messages == before
    assert talk.send("Short", max_new_tokens=5).run().num_reused > 200


def test_an_overflow_can_drop_the_oldest_turns(session: Session) -> None:
    talk = session.conversation([SYSTEM], overflow="drop_oldest")
    for turn in range(12):
        answer = talk.send(f"Question {turn} about trees", max_new_tokens=40).run()
        assert answer.finish_reason in ("eos", "length")
        text = session.codec.tokenizer.decode(list(answer.prompt_ids), skip_special_tokens=False)
        assert text.startswith("<|system|>Short answers.<|end|>")
        assert f"Question {turn} about trees" in text
    assert talk.num_dropped > 0
    assert talk.num_dropped % 2 == 0
    assert len(talk.messages) == 25
    with pytest.raises(PromptError, match="this engine holds"):
        talk.send("word " * 200)
    unknown: Any = "shrink"
    with pytest.raises(PromptError, match="overflow 'shrink' is not one of"):
        session.conversation(overflow=unknown)


def test_cancellation_and_deadline_take_effect_within_a_step(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = session.stream(prompt_ids(1), 200, ignore_eos=True)
    next(answer)
    next(answer)
    num_steps, kept = session.stats.num_steps, [*answer.token_ids]
    answer.cancel()
    assert list(answer) == [""] or answer.finish_reason == "cancelled"
    assert (session.stats.num_steps, answer.token_ids) == (num_steps, kept)
    late = session.stream(prompt_ids(1), 200, ignore_eos=True, timeout_s=3600)
    next(late)
    num_steps = session.stats.num_steps
    an_hour_later = monotonic() + 3601
    monkeypatch.setattr("bita.runtime.generation.monotonic", lambda: an_hour_later)
    late.run()
    monkeypatch.undo()
    assert late.finish_reason == "timeout"
    assert session.stats.num_steps == num_steps
    long = session.stream(prompt_ids(1, 380), 2, timeout_s=30)
    assert next(long) == ""  # a piece of the prompt counts as a step
    long.cancel()
    assert long.run().finish_reason == "cancelled"
    assert long.token_ids == []


def test_waiting_for_the_engine_counts_towards_the_timeout(session: Session) -> None:
    for wait in (next, Generation.run):
        answer = session.stream(prompt_ids(1), 20, timeout_s=0.05)
        with session.lock:
            thread = threading.Thread(target=wait, args=(answer,))
            thread.start()
            thread.join(timeout=10)
            assert not thread.is_alive()
        assert answer.finish_reason == "timeout"
        assert answer.token_ids == []


def test_an_interrupt_does_not_affect_the_next_answer(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = session.generate(prompt_ids(1), 30, ignore_eos=True).token_ids
    cache = session.backend.cache
    commit = cache.commit

    def interrupted(path: list[int]) -> None:
        commit(path)
        raise KeyboardInterrupt

    session.forget()
    answer = session.stream(prompt_ids(1), 30, ignore_eos=True)
    next(answer)
    monkeypatch.setattr(cache, "commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(answer)
    monkeypatch.undo()
    assert answer.finish_reason == "cancelled"
    assert session.generate(prompt_ids(1), 30, ignore_eos=True).token_ids == expected


def test_memory_of_kept_texts_is_bounded(session: Session) -> None:
    small = Session.open(
        session.engine.path, num_threads=1, kept_text_bytes=100_000, keep_answers=True
    )
    store = small.decoder.shared_cache.store
    for seed in range(40):
        small.generate(prompt_ids(seed, 60), 10)
        assert store.num_bytes <= 100_000
    assert store.num_bytes > 50_000
    small.reset_stats()
    small.generate(prompt_ids(38, 60), 10)
    assert small.stats.num_reused_tokens >= 59
    small.forget()
    assert store.num_bytes == 0
