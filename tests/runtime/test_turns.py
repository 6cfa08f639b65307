"""Interleaved answers on one engine: every call makes progress, and the tokens do not change."""

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from deadlines import stopped_if_it_hangs
from make_tiny_engine import TINY_CAPACITY
from random_drafts import AR, drafting_adapter, prompt_ids, random_tree
from speed import thorough_but

from bita.runtime.conversation import Conversation
from bita.runtime.generation import Generation
from bita.runtime.session import Session
from bita.runtime.text.grammar import Grammar
from bita.tree import Tree
from bita.tree_table import Trees, TreeTable

SWITCHING = TreeTable(
    (Tree.root_only(2), Tree.chain(3), Tree.chain(6, 0).with_guesses(1)), (0, 2), ((0, 2), (1, 2))
)
ROW_BYTES = 2 * 2 * 2 * 16 * 4  # bytes of one token in the tiny engine's cache
BUDGETS = (0, 1, 20 * ROW_BYTES, 100 * ROW_BYTES, 256 << 20)
NEW_TOKENS = 25


def open_session(engine: Path, kept_text_bytes: int, mode: str = "exact") -> Session:
    return Session.open(engine, num_threads=1, mode=mode, kept_text_bytes=kept_text_bytes)


def run_interleaved(streams: Sequence[Generation], rng: random.Random) -> int:
    """Call the streams in random order until all end, and return the number of calls."""
    num_calls = 0
    while running := [stream for stream in streams if stream.finish_reason is None]:
        rng.choice(running).__next__()
        num_calls += 1
        assert num_calls < 10_000
    return num_calls


def max_calls(stream: Generation, prefill_rows: int) -> int:
    """Return the most calls needed: one per prompt piece and token, and one that sees the end."""
    return -(-len(stream.prompt_ids) // prefill_rows) + len(stream.token_ids) + 1


def random_options(rng: random.Random) -> dict[str, Any]:
    """Return random options: greedy, sampled, penalized or with a grammar."""
    grammars = (Grammar.regex("[a-c]{3,40}"), Grammar.json_object(), Grammar.choice(["ab", "abc"]))
    return rng.choice(
        [
            {"ignore_eos": True},
            {"ignore_eos": True, "temperature": 0.9, "seed": rng.randrange(99)},
            {"temperature": 0.7, "top_p": 0.9, "seed": rng.randrange(99), "logprobs": 2},
            {"ignore_eos": True, "repetition_penalty": 1.3, "presence_penalty": 0.5},
            {"grammar": rng.choice(grammars), "temperature": 0.8, "seed": rng.randrange(99)},
        ]
    )


def random_prompt(rng: random.Random) -> list[int]:
    """Return one token up to a prompt that just fits; many share a beginning."""
    length = rng.choice((1, 2, 5, 7, 8, 9, 30, 127, 128, 129, 130, 257, 300, TINY_CAPACITY - 6))
    common = prompt_ids(rng.randrange(2), length)
    return (
        common if rng.random() < 0.5 else [*common[: length // 2], *prompt_ids(9, length)][:length]
    )


@pytest.mark.parametrize("kept_text_bytes", BUDGETS)
@pytest.mark.parametrize("length", [1, 3, 7, 8, 20, 200])
def test_two_alternating_answers_end(tiny_engine: Path, kept_text_bytes: int, length: int) -> None:
    session = open_session(tiny_engine, kept_text_bytes)
    prompts = [prompt_ids(1, length), prompt_ids(2, length)]
    streams = [session.stream(prompt, 10, ignore_eos=True) for prompt in prompts]
    with stopped_if_it_hangs(30):
        for _ in range(max_calls(streams[0], session.backend.prefill_rows) + 10):
            for stream in streams:
                next(stream, None)
    assert [stream.finish_reason for stream in streams] == ["length", "length"]
    for prompt, stream in zip(prompts, streams, strict=True):
        session.forget()
        assert stream.token_ids == session.generate(prompt, 10, ignore_eos=True).token_ids


@pytest.mark.parametrize("seed", thorough_but(range(16), 0, 1, 2, 3))
def test_interleaved_answers_equal_separate_ones_for_any_cache_budget(
    tiny_engine: Path, seed: int
) -> None:
    """Two to five streams have their own trees, n-grams, adapters, options and prompts."""
    pytest.importorskip("llguidance")
    rng = random.Random(seed)
    session = open_session(tiny_engine, rng.choice(BUDGETS))
    trees: list[Trees] = [AR, random_tree(seed), SWITCHING, Tree.triangle((4, 3, 2), 3)]
    adapters = [drafting_adapter(session, prefix_length, seed) for prefix_length in (0, 2, 2)]
    jobs = []
    for _ in range(rng.randint(2, 5)):
        own = session.using(tree=rng.choice(trees), adapter=rng.choice(adapters))
        jobs.append((own, random_prompt(rng), random_options(rng)))
    streams = [own.stream(prompt, NEW_TOKENS, **options) for own, prompt, options in jobs]
    with stopped_if_it_hangs():
        num_calls = run_interleaved(streams, rng)
    assert num_calls <= sum(max_calls(each, session.backend.prefill_rows) for each in streams)
    for (own, prompt, options), stream in zip(jobs, streams, strict=True):
        session.forget()
        alone = own.generate(prompt, NEW_TOKENS, **options)
        assert (stream.token_ids, stream.text) == (alone.token_ids, alone.text)
        assert stream.finish_reason == alone.finish_reason


@pytest.mark.parametrize("seed", range(6))
def test_interleaved_conversations_and_forks_equal_separate_answers(
    tiny_engine: Path, seed: int
) -> None:
    rng = random.Random(seed)
    session = open_session(tiny_engine, rng.choice(BUDGETS))
    root = session.conversation()
    root.send("Hi", max_new_tokens=8).run()
    talks: list[Conversation] = [root, root.fork(), session.conversation()]
    for question in ("A", "And?", "So"):
        options = {"max_new_tokens": 12, "temperature": 0.8, "seed": seed}
        answers = [talk.send(f"{question} {at}", **options) for at, talk in enumerate(talks)]
        with stopped_if_it_hangs():
            run_interleaved(answers, rng)
        for answer in answers:
            session.forget()
            alone = session.generate(list(answer.prompt_ids), 12, temperature=0.8, seed=seed)
            assert answer.token_ids == alone.token_ids


def test_every_call_makes_progress(tiny_engine: Path) -> None:
    """This holds in the answer and in the prompt, whose rows another text evicts."""
    session = open_session(tiny_engine, kept_text_bytes=0)
    long = session.stream(prompt_ids(1, 300), 10, ignore_eos=True)
    num_given: list[int] = []
    with stopped_if_it_hangs(20):
        while long.finish_reason is None:
            session.generate(prompt_ids(10 + len(num_given), 140), 1)
            next(long)
            num_given.append(len(long.token_ids))
    num_pieces = -(-300 // session.backend.prefill_rows)
    assert num_given[: num_pieces - 1] == [0] * (num_pieces - 1)
    answer = num_given[num_pieces - 1 :]
    assert answer[0] == 1
    assert all(after > before for before, after in pairwise(answer))


@pytest.mark.parametrize("reason", ["timeout", "cancelled"])
def test_an_answer_can_end_between_pieces_that_are_recomputed(
    tiny_engine: Path, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(tiny_engine, kept_text_bytes=0)
    stream = session.stream(prompt_ids(1, 300), 10, ignore_eos=True, timeout_s=3600)
    while not stream.token_ids:
        next(stream)
    session.generate(prompt_ids(2), 1)
    ends: dict[str, Callable[[], None]] = {
        "cancelled": stream.cancel,
        "timeout": lambda: monkeypatch.setattr(
            "bita.runtime.generation.monotonic", lambda: float("inf")
        ),
    }
    sizes = []

    def end_it(name: str, began: float, ended: float, num_rows: int) -> None:
        sizes.append(num_rows)
        ends[reason]()

    session.record(end_it)
    next(stream)
    assert stream.finish_reason == reason
    assert sizes == [session.backend.prefill_rows]
    assert len(stream.token_ids) == 1


@pytest.mark.parametrize("room", range(3))
def test_interleaved_prompts_that_fill_the_cache_end(tiny_engine: Path, room: int) -> None:
    session = open_session(tiny_engine, kept_text_bytes=0)
    length = session.max_prompt_tokens - room
    prompts = [prompt_ids(seed, length) for seed in (1, 2)]
    streams = [session.stream(prompt, 50, ignore_eos=True) for prompt in prompts]
    with stopped_if_it_hangs():
        run_interleaved(streams, random.Random(room))
    for prompt, stream in zip(prompts, streams, strict=True):
        session.forget()
        alone = session.generate(prompt, 50, ignore_eos=True)
        assert stream.finish_reason == alone.finish_reason == "capacity"
        assert stream.token_ids == alone.token_ids
