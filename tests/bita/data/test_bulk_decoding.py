"""Texts decoded together in steps of native operators equal those decoded one at a time."""

from pathlib import Path

import numpy as np
import pytest
from native_engines import FEATURES, native_engine, require_library

from bita.data.generators import EngineGenerator
from bita.data.samplers import EngineSampler
from bita.engine import Engine
from bita.errors import PromptError, TuningError
from bita.runtime.session import Session
from bita.tree import Tree

RNG = np.random.default_rng(5)
# more than fit in a batch, some with a common prefix, one longer than a prefill piece
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


def test_batched_texts_equal_those_decoded_one_at_a_time(session: Session) -> None:
    alone = [session.generate(prompt, NUM_NEW).token_ids for prompt in PROMPTS]
    assert len({tuple(ids) for ids in alone}) > 10
    found = EngineGenerator(session).complete(PROMPTS, NUM_NEW)
    assert [each.token_ids for each in found] == alone
    ended = [ids[-1] in session.eos_ids for ids in alone]
    assert [each.finish == "eos" for each in found] == ended
    again = session.generate(PROMPTS[0], NUM_NEW)  # the session's own text is unaffected
    assert again.token_ids == alone[0]


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


def test_sampled_texts_depend_only_on_their_seeds(session: Session) -> None:
    sampler, seeds = EngineSampler(session, 1.0, 0.9), list(range(len(PROMPTS)))
    together = sampler.sample(PROMPTS, seeds, NUM_NEW, session.eos_ids)
    for number in (0, 6, 18):
        (alone,) = sampler.sample([PROMPTS[number]], [number], NUM_NEW, session.eos_ids)
        assert alone == together[number]
    (other,) = sampler.sample([PROMPTS[0]], [99], NUM_NEW, session.eos_ids)
    assert other != together[0]
    with pytest.raises(TuningError, match="temperature 0"):
        EngineSampler(session, 0)


def test_engines_of_other_operators_decode_one_text_at_a_time(tiny_engine: Path) -> None:
    session = Session.open(tiny_engine, tree=Tree.root_only(), num_threads=1)
    generator = EngineGenerator(session)
    assert (generator.batch_size, generator.bulk_session) == (1, None)
    alone = [session.generate(prompt, 8).token_ids for prompt in PROMPTS[:3]]
    assert [each.token_ids for each in generator.complete(PROMPTS[:3], 8)] == alone
