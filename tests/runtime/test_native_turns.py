"""Texts that alternate on native engines are bit-identical to the same texts alone."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from deadlines import stopped_if_it_hangs
from native_engines import FEATURES, native_engine, require_library
from random_drafts import AR, drafting_adapter, prompt_ids, random_tree
from speed import thorough_but

from bita.runtime.backends.page_pool import num_pages
from bita.runtime.backends.paged_cache import PagedCache
from bita.runtime.generation import Generation
from bita.runtime.session import Session

CAPACITY = 720
OPTIONS: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True, "logprobs": 5}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny int4 Llama: capacity 720, three masks, a prefix of 5 and the tree (5,4,3)."""
    require_library()
    return native_engine(FEATURES["long"], tmp_path_factory.mktemp("native"), "int4", CAPACITY).path


def open_session(engine: Path, kept_pages: int = 1000) -> Session:
    """Open a session whose store may keep `kept_pages` pages."""
    kept_text_bytes = kept_pages * page_bytes(Session.open(engine, num_threads=1))
    return Session.open(engine, num_threads=1, kept_text_bytes=kept_text_bytes)


def cache_of(session: Session) -> PagedCache:
    cache = session.backend.cache
    assert isinstance(cache, PagedCache)
    return cache


def page_bytes(session: Session) -> int:
    return cache_of(session).slab[:, 0].nbytes


def num_used(session: Session) -> int:
    cache = cache_of(session)
    return cache.slab.shape[1] - cache._pool.num_free


def run_interleaved(streams: Sequence[Generation], rng: random.Random) -> None:
    """Run streams to their ends, one step of each at a time in random order."""
    with stopped_if_it_hangs():
        while running := [stream for stream in streams if stream.finish_reason is None]:
            rng.shuffle(running)
            for stream in running:
                next(stream, None)


def assert_as_alone(session: Session, found: Generation, **options: Any) -> None:
    """Assert that a session which reads the whole prompt gives the same tokens and logprobs."""
    session.forget()
    alone = session.generate(list(found.prompt_ids), **{**OPTIONS, **options})
    assert alone.num_reused == 0
    assert found.token_ids == alone.token_ids
    assert found.logprobs == alone.logprobs


@pytest.mark.parametrize("kept_pages", [0, 5, 14, 1000])
@pytest.mark.parametrize("seed", thorough_but(range(3), 0))
def test_interleaved_forks_equal_each_fork_alone(engine: Path, kept_pages: int, seed: int) -> None:
    """Three turns of conversation take steps in random order; pages are evicted if few are kept."""
    rng, session = random.Random(seed), open_session(engine, kept_pages)
    other = Session.open(engine, num_threads=1)
    talk = session.conversation([{"role": "system", "content": "The tree of drafts grows."}])
    talk.send("The quick brown fox", **OPTIONS).run()
    talks = [talk, *(talk.fork() for _ in range(3))]
    for question in ("A", "And the lazy dog?", "So"):
        chosen = {"temperature": 0.8, "seed": seed} if question == "So" else {}
        answers = [
            each.send(f"{question} {number}", **OPTIONS, **chosen)
            for number, each in enumerate(talks)
        ]
        run_interleaved(answers, rng)
        store = session.decoder.shared_cache.store
        assert store.num_bytes <= kept_pages * page_bytes(session)
        for answer in answers:
            assert_as_alone(other, answer, **chosen)


@pytest.mark.parametrize("seed", range(6))
def test_texts_with_different_trees_and_adapters_can_alternate(engine: Path, seed: int) -> None:
    """Prefixes take up to two pages, and the shared beginning is read once."""
    rng = random.Random(seed)
    session = open_session(engine, rng.choice((8, 40, 1000)))
    other = Session.open(engine, num_threads=1)
    begin, jobs = prompt_ids(seed, 45), []
    for number, prefix_length in enumerate((0, 5, 17, 20)):
        adapter = drafting_adapter(session, prefix_length, number)
        own = session.using(tree=rng.choice([AR, random_tree(seed)]), adapter=adapter)
        prompt = [*begin[: rng.randint(20, 45)], *prompt_ids(number, 30)]
        jobs.append(own.stream(prompt, **OPTIONS))
    run_interleaved(jobs, rng)
    assert sum(stream.num_reused > 0 for stream in jobs) == 3
    for stream in jobs:
        assert_as_alone(other, stream)


def test_the_text_is_reused_with_another_prefix(engine: Path) -> None:
    session = open_session(engine, kept_pages=0)
    first = session.generate(prompt_ids(1, 60), **OPTIONS)
    for prefix_length in (0, 17, 5, 40):
        adapter = drafting_adapter(session, prefix_length, seed=1)
        again = session.using(adapter=adapter).generate(prompt_ids(1, 60), **OPTIONS)
        assert again.num_reused == 59
        assert again.logprobs == first.logprobs


def test_forks_of_a_long_text_take_only_the_pages_that_they_write(engine: Path) -> None:
    """Six answers write to the page in which their prompt of 500 tokens ends."""
    kept_text_bytes = 100 * page_bytes(open_session(engine))
    session = Session.open(
        engine, num_threads=1, kept_text_bytes=kept_text_bytes, keep_answers=True
    )
    chosen = {**OPTIONS, "temperature": 1.0}
    answers = [session.stream(prompt_ids(1, 500), **chosen, seed=seed) for seed in range(6)]
    while not answers[0].token_ids:
        next(answers[0])
    run_interleaved(answers, random.Random(0))
    assert [answer.num_reused for answer in answers] == [0, 499, 499, 499, 499, 499]
    session.generate([7], 1)  # evicts all of them
    own = num_pages(500 + 24) - 500 // 16
    assert own == 2
    assert num_used(session) == 500 // 16 + 6 * own + 1 + 1  # the prefix and [7] have a page each


def test_a_returning_text_is_not_read_again(engine: Path) -> None:
    session, rows = open_session(engine), []
    streams = [session.stream(prompt_ids(seed, 500), **OPTIONS) for seed in range(3)]
    for stream in streams:
        while not stream.token_ids:
            next(stream)
    session.record(lambda name, began, ended, num_rows: rows.append((name, num_rows)))
    run_interleaved(streams, random.Random(0))
    assert not [each for each in rows if each[0] == "prefill"]
    assert len(rows) > 60


def test_the_number_of_pages_follows_the_kept_bytes(engine: Path) -> None:
    """Zero kept bytes add no pages; the default adds 256 MiB, which take no memory when opened."""
    without, usual = open_session(engine, 0), Session.open(engine, num_threads=1)
    needed = num_pages(CAPACITY - 1) + 1
    assert cache_of(without).slab.shape[1] == needed
    assert cache_of(open_session(engine, 9)).slab.shape[1] == needed + 9
    assert cache_of(usual).slab.shape[1] == needed + (256 << 20) // page_bytes(usual)
