"""Many texts in one step of native operators: each is the text that it is by itself."""

from pathlib import Path

import numpy as np
import pytest
from native_engines import FEATURES, native_engine, require_library

from bita.data.bulk_decoding import decode_in_bulk, new_batch
from bita.data.generators import EngineGenerator
from bita.data.samplers import EngineSampler, draw_token, uniform_draws
from bita.engine import Engine
from bita.errors import EngineError, PromptError, TuningError
from bita.runtime.session import Session
from bita.tree import Tree

RNG = np.random.default_rng(5)
# more than a batch holds, some alike at their beginnings, one longer than a piece of a prefill
LENGTHS = (3, 17, 1, 8, 30, 5, 60, 2, 9, 9, 4, 12, 33, 7, 21, 6, 11, 40, 2)
PROMPTS = [RNG.integers(4, 300, length).tolist() for length in LENGTHS]
PROMPTS[9][:6] = PROMPTS[8][:6]
NUM_NEW = 24


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    require_library()
    return native_engine(FEATURES[request.param], tmp_path_factory.mktemp("bulk"))


@pytest.fixture
def session(engine: Engine) -> Session:
    return Session.open(engine.path, tree=Tree.root_only(), num_threads=1)


def test_texts_are_those_of_one_at_a_time(session: Session) -> None:
    alone = [session.generate(prompt, NUM_NEW).token_ids for prompt in PROMPTS]
    assert len({tuple(ids) for ids in alone}) > 10
    found = EngineGenerator(session).complete(PROMPTS, NUM_NEW)
    assert [each.token_ids for each in found] == alone
    ended = [ids[-1] in session.eos_ids for ids in alone]
    assert [each.finish == "eos" for each in found] == ended
    again = session.generate(PROMPTS[0], NUM_NEW)  # the session's own text is not disturbed
    assert again.token_ids == alone[0]


def test_an_answer_ends_at_a_stop_token_and_the_next_prompt_takes_its_place(
    session: Session,
) -> None:
    whole = [session.generate(p, NUM_NEW, ignore_eos=True).token_ids for p in PROMPTS]
    stop_ids = {ids[4] for ids in whole[::3]}
    found = decode_in_bulk(
        new_batch(session, PROMPTS, NUM_NEW),
        PROMPTS,
        lambda results, _rows, _steps: results.best_ids.tolist(),
        NUM_NEW,
        stop_ids,
    )
    for ids, expected in zip(found, whole, strict=True):
        end = next((n + 1 for n, token in enumerate(expected) if token in stop_ids), NUM_NEW)
        assert ids == expected[:end]


def test_a_full_cache_ends_like_the_limit(session: Session) -> None:
    prompt = [5] * 150
    answers = EngineGenerator(session).complete([prompt, PROMPTS[0]], 100)
    assert answers[0].finish == "length"
    assert 0 < len(answers[0].token_ids) < 20
    alone = session.generate(prompt, 100).token_ids
    shorter = min(len(alone), len(answers[0].token_ids))
    assert shorter > 3
    assert answers[0].token_ids[:shorter] == alone[:shorter]
    with pytest.raises(PromptError, match="this engine holds"):
        EngineGenerator(session).complete([[5] * 161], 4)


def test_drawn_texts_depend_on_their_seeds_alone(session: Session) -> None:
    sampler, seeds = EngineSampler(session, 1.0, 0.9), list(range(len(PROMPTS)))
    together = sampler.sample(PROMPTS, seeds, NUM_NEW, session.eos_ids)
    for number in (0, 6, 18):
        (alone,) = sampler.sample([PROMPTS[number]], [number], NUM_NEW, session.eos_ids)
        assert alone == together[number]
    (other,) = sampler.sample([PROMPTS[0]], [99], NUM_NEW, session.eos_ids)
    assert other != together[0]
    with pytest.raises(TuningError, match="temperature 0"):
        EngineSampler(session, 0)


def test_tokens_are_drawn_from_the_nucleus() -> None:
    logits = np.log(np.array([0.1, 0.5, 0.25, 0.15], np.float32))
    drawn = [draw_token(logits, draw, 1.0, 0.8) for draw in uniform_draws(3, 4000)]
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    # the nucleus is the three likeliest, 0.9 together
    np.testing.assert_allclose(shares, [0, 0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9], atol=0.03)
    flat = np.zeros(5000, np.float32)  # all tokens are needed, in the order of their ids
    assert draw_token(flat, 0.5, 1.0, 1.0) == 2500
    spread = np.linspace(0, 30, 5000).astype(np.float32)
    assert draw_token(spread, 0.0, 1.0, 1.0) == 4999
    assert draw_token(spread, 0.999999, 10.0, 1.0) < 1500


def test_engines_of_other_operators_decode_one_text_at_a_time(tiny_engine: Path) -> None:
    session = Session.open(tiny_engine, tree=Tree.root_only(), num_threads=1)
    generator = EngineGenerator(session)
    assert (generator.batch_size, generator.bulk_session) == (1, None)
    with pytest.raises(EngineError, match="build it again with --dialect native"):
        new_batch(session, PROMPTS[:2], 4)
