"""Generators and samplers agree with each other for every batch size, padding and server."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_engine import write_plain_model
from speed import slow_but
from tiny_models import EOS_ID, write_tiny_model

from bita.data.generators import Completion, EngineGenerator, TransformersGenerator, cut_at_eos
from bita.data.samplers import (
    HEAD_TOKENS,
    TransformersSampler,
    derive_seed,
    pick_nucleus,
    uniform_draws,
)
from bita.errors import ModelError, TuningError
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.runtime.session import Session
from bita.tree import Tree

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bita.torch.base_model import load_base_model  # noqa: E402

torch.set_num_threads(1)
RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(4, 300, length).tolist() for length in (3, 17, 1, 8, 30, 5)]
NUM_NEW = 24


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_base_model(
        open_checkpoint(str(write_plain_model(tmp_path_factory.mktemp("plain"))))
    )


@pytest.mark.parametrize("tree", [Tree.root_only(), Tree.triangle()])
def test_an_engine_generates_the_same_texts_as_transformers(
    plain: Any, tiny_engine: Path, tree: Tree
) -> None:
    session = Session.open(tiny_engine, tree=tree, num_threads=1)
    found = EngineGenerator(session).complete(PROMPTS, NUM_NEW)
    expected = TransformersGenerator(plain, [EOS_ID]).complete(PROMPTS, NUM_NEW)
    assert list(found) == list(expected)


def test_an_engine_of_another_model_is_refused(tiny_engine: Path, tmp_path: Path) -> None:
    session = Session.open(tiny_engine, num_threads=1)
    same, other = (
        identify(open_checkpoint(str(write_plain_model(tmp_path / str(seed), seed))))
        for seed in (0, 1)
    )
    EngineGenerator(session, same)
    with pytest.raises(ModelError, match=r"is not an engine of this model(.|\n)*cosine"):
        EngineGenerator(session, other)


def test_a_full_cache_ends_like_the_limit(tiny_engine: Path) -> None:
    session = Session.open(tiny_engine, num_threads=1)
    (answer,) = EngineGenerator(session).complete([PROMPTS[0] * 110], 100)
    assert answer.finish == "length"
    assert 0 < len(answer.token_ids) < 100


@pytest.mark.parametrize(
    "family", slow_but(["llama", "mistral", "gemma2", "qwen3", "smollm3"], "llama")
)
def test_padding_and_batches_do_not_change_ids(family: str, tmp_path: Path) -> None:
    """The attention windows of mistral and gemma2 (16) are shorter than the texts."""
    model = load_base_model(open_checkpoint(str(write_tiny_model(family, tmp_path))))
    alone = [TransformersGenerator(model, [], 1).complete([p], NUM_NEW)[0] for p in PROMPTS]
    # these EOS ids end four of six rows early, so that the batch shrinks
    eos_ids = [alone[i].token_ids[at] for i, at in ((0, 2), (2, 4), (3, 3), (5, 9))]
    expected = [cut_at_eos(answer.token_ids, eos_ids) for answer in alone]
    assert sum(answer.finish == "eos" for answer in expected) >= 4
    for batch_size in (6, 4):
        found = TransformersGenerator(model, eos_ids, batch_size).complete(PROMPTS, NUM_NEW)
        assert found == expected


def test_padding_takes_no_positions() -> None:
    """GPT-2 adds a learned vector per position, so it shows errors that rotary models hide."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=2, vocab_size=300, n_positions=64, initializer_range=0.5
        )
        model = transformers.GPT2LMHeadModel(config).eval()
    alone = [TransformersGenerator(model, [], 1).complete([p], NUM_NEW)[0] for p in PROMPTS]
    assert TransformersGenerator(model, []).complete(PROMPTS, NUM_NEW) == alone


def test_an_answer_ends_at_the_first_eos() -> None:
    assert cut_at_eos([5, 1, 6, 2], (2, 1)) == Completion([5, 1], "eos")
    assert cut_at_eos([5, 6], (2, 1)) == Completion([5, 6], "length")


def test_nucleus_sampling_equals_a_computation_by_hand() -> None:
    """Probabilities 0.5, 0.1, 0.3, 0.1; the nucleus of 0.75 is tokens 0 and 2 with mass 0.8."""
    logits = torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log()

    def picked(draw: float, top_p: float, temperature: float = 1.0) -> int:
        draws = torch.tensor([draw], dtype=torch.float64)
        return int(pick_nucleus(logits, draws, temperature, top_p)[0])

    assert [picked(draw, 0.75) for draw in (0.0, 0.62, 0.63, 0.999)] == [0, 0, 2, 2]
    assert [picked(draw, 1.0) for draw in (0.49, 0.51, 0.79, 0.81, 0.91)] == [0, 2, 2, 1, 3]
    assert [picked(draw, 0.01) for draw in (0.0, 0.999)] == [0, 0]
    # squared: 25/36, 9/36, 1/36, 1/36
    assert [picked(draw, 1.0, 0.5) for draw in (0.69, 0.70, 0.94, 0.95)] == [0, 2, 2, 1]


def test_nucleus_sampling_from_the_head_equals_sorting_everything() -> None:
    """Steep rows have the nucleus in the head of the vocabulary; flat rows in the batch do not."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 4 * HEAD_TOKENS, generator=generator)
    logits[::2] *= 8
    draws = torch.rand(40, dtype=torch.float64, generator=generator)
    picked = pick_nucleus(logits, draws, 1.0, 0.95)
    for row in range(40):
        probabilities = logits[row].softmax(-1)
        ordered = probabilities.sort(descending=True)
        mass = ordered.values.double().cumsum(0)
        size = int((mass < 0.95).sum()) + 1
        rank = int((mass <= draws[row] * mass[size - 1]).sum())
        assert int(picked[row]) == int(ordered.indices[min(rank, size - 1)])


def test_a_sample_depends_on_its_seed_only(plain: Any) -> None:
    sampler = TransformersSampler(plain, temperature=1.5)
    seeds = [derive_seed(7, index) for index in range(len(PROMPTS))]
    stop_ids = range(100)  # most rows end early, and the batch shrinks
    together = sampler.sample(PROMPTS, seeds, 12, stop_ids)
    assert len(set(map(len, together))) >= 3
    for prompt, seed, expected in zip(PROMPTS, seeds, together, strict=True):
        assert sampler.sample([prompt], [seed], 12, stop_ids) == [expected]
    same_prompt = sampler.sample(PROMPTS[:1] * 6, seeds, 12, [EOS_ID])
    assert len({tuple(answer) for answer in same_prompt}) == 6
    with pytest.raises(TuningError, match=r"temperature 0 .*above 0"):
        TransformersSampler(plain, temperature=0)


def test_draws_are_uniform_and_reproducible() -> None:
    draws = uniform_draws(derive_seed(0, 1, 2), 4000)
    assert 0 <= draws.min() < 0.01
    assert 0.99 < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.02
    assert derive_seed(0, 1, 2) == 3071860871404845570  # every version of numpy gives this
