"""Logits that are not numbers raise an error and never give a token."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_cuda import load_host_cuda
from make_tiny_engine import write_plain_model
from random_drafts import AR, prompt_ids
from safetensors.numpy import load_file, save_file

from bita.adapter import random_adapter
from bita.errors import EngineError
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
from bita.identity import ModelIdentity, identify
from bita.runtime.backends.cache import Cache, HostCache
from bita.runtime.backends.device_memory import DeviceCache
from bita.runtime.decoding.chooser import Chooser
from bita.runtime.options import Options
from bita.runtime.session import Session
from bita.runtime.text.grammar import Grammar
from bita.tree import Tree

Overflowing = Callable[[str, str], Path]
WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.01},
    {"logprobs": 3},
    {"repetition_penalty": 1.3},
    {"logit_bias": {5: 3.0}},
]


OVERFLOW = r"logits are (not numbers|all zero) \(step at position \d+\)"
FACTORS: dict[str, tuple[str, float]] = {  # kind: part of the tensors' names, and the factor
    "logits": ("model.norm", 1e38),
    "residuals": ("mlp", 1e12),
    "scores": ("k_proj", 1e38),
}


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Overflowing:
    """Engines with finite weights but overflowing products, by kind (FACTORS) and precision."""

    @cache
    def build(kind: str, precision: str) -> Path:
        folder = tmp_path_factory.mktemp("overflowing")
        weights = write_plain_model(folder / "model") / "model.safetensors"
        part, factor = FACTORS[kind]
        tensors = {
            name: np.float32(factor if part in name else 1) * array
            for name, array in load_file(weights).items()
        }
        save_file(tensors, weights)
        checkpoint = open_checkpoint(str(folder / "model"))
        adapter = random_adapter(identify(checkpoint), 3, 2, scale=0.4)
        options = BuildOptions(precision, capacity=300, tree=Tree.triangle())
        build_engine(check_build(checkpoint, adapter, folder / "engine", options))
        return folder / "engine"

    return build


KINDS = [("logits", "fp32"), ("residuals", "fp32"), ("residuals", "int8"), ("scores", "fp32")]


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("length", [5, 200])
@pytest.mark.parametrize(("kind", "precision"), KINDS)
def test_a_model_that_overflows_raises_an_error(
    overflowing: Overflowing, kind: str, precision: str, options: dict[str, Any], length: int
) -> None:
    session = Session.open(overflowing(kind, precision), num_threads=1)
    for each in (session, session.using(tree=AR)):
        stream = each.stream(prompt_ids(1, length), 5, **options)
        with pytest.raises(EngineError, match=OVERFLOW):
            stream.run()
        assert stream.token_ids == []
        assert stream.finish_reason == "cancelled"


def test_the_margin_of_a_model_that_overflows_raises_an_error(overflowing: Overflowing) -> None:
    with pytest.raises(EngineError, match=OVERFLOW):
        Session.open(overflowing("scores", "fp32"), num_threads=1).margin(prompt_ids(1))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("options", WAYS[1:])
def test_a_single_logit_that_is_not_finite_raises_an_error(
    options: dict[str, Any], value: float
) -> None:
    """The best logits of the row may be finite."""
    logits = np.random.default_rng(0).normal(size=320).astype(np.float32)
    logits[200] = value
    chooser = Chooser(Options.of(**options), [5, 6], {1}, seed=1)
    with pytest.raises(EngineError, match="logits are not numbers"):
        chooser.choose(logits)


def test_a_logit_of_minus_infinity_excludes_its_token(tiny_engine: Path) -> None:
    """Some heads give -inf to rows without a token, which is valid."""
    logits = np.full(320, -np.inf, np.float32)
    logits[[7, 9]] = 3.0, 1.0
    for options in WAYS[1:]:
        assert Chooser(Options.of(**options), [5], {1}, seed=1).choose(logits.copy()) in (7, 9)


@pytest.mark.parametrize("kind", ["host", "device"])
def test_clearing_a_cache_keeps_only_the_text(kind: str) -> None:
    identity = ModelIdentity("llama", 2, 8, 3, 4, 9, {})
    adapter = random_adapter(identity, 1, prefix_length=5)
    shape = (4, 3, 600, 4)
    cache: Cache
    if kind == "host":
        cache = HostCache(shape)
    else:
        cuda = load_host_cuda()
        cache = DeviceCache(shape, np.float32, cuda, cuda.stream())
    cache.start(adapter)
    prefix = cache.read(-5, 0)
    text = np.random.default_rng(0).normal(size=(4, 3, 7, 4)).astype(np.float32)
    cache.append(text)
    cache.reserve(400, 400)
    cache._put(np.full((4, 3, 400, 4), np.nan, np.float32))  # rows left by a step
    cache.clear_around_text()
    assert not cache.read(-5, 0).any()
    assert not cache.read(7, 595).any()
    np.testing.assert_array_equal(cache.read(0, 7), text)
    cache.start(adapter)
    np.testing.assert_array_equal(cache.read(-5, 0), prefix)


def test_a_grammar_on_a_model_that_overflows_raises_an_error(overflowing: Overflowing) -> None:
    pytest.importorskip("llguidance")
    session = Session.open(overflowing("residuals", "fp32"), num_threads=1)
    with pytest.raises(EngineError, match=OVERFLOW):
        session.generate(prompt_ids(1), 5, grammar=Grammar.regex("[a-c]+"))
