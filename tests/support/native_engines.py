"""Engines with native operators for tiny models, built without torch."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_engine import CONFIG, write_plain_model
from tiny_models import FAMILIES, tiny_config

from bita.adapter import Adapter, random_adapter
from bita.engine import Engine, open_engine
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.lora import site_sizes, starting_lora
from bita.runtime.backends.layout import prefill_layout
from bita.runtime.backends.ort_backend import BoundStep, OrtBackend
from bita.tree import Tree

ODD: Mapping[str, Any] = {  # 32 divides neither the hidden size nor the inner one
    **CONFIG,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
}
FEATURES: dict[str, Mapping[str, Any]] = {
    **{family: tiny_config(family) for family in FAMILIES},
    "odd sizes": ODD,
    "long": {**tiny_config("llama3"), "max_position_embeddings": 2048},
}


def require_library() -> None:
    """Skip the test if the library of native operators is not built."""
    from bita.errors import LibraryMissingError
    from bita.runtime.native.library import loaded_operators

    try:
        loaded_operators()
    except LibraryMissingError as error:
        pytest.skip(str(error))


def lora_adapter(model: Path, prefix_length: int = 5, scale: float = 0.4, seed: int = 0) -> Adapter:
    """Return an adapter with random masks, prefix and LoRA; some of its drafts are right.

    The LoRA values are exact in float16, the type in which native operators read them.
    """
    checkpoint = open_checkpoint(str(model))
    identity = identify(checkpoint)
    lora = starting_lora(site_sizes(checkpoint), identity.num_layers, 3, seed=0)
    made = random_adapter(identity, 3, prefix_length, scale=scale, seed=seed, lora_like=lora)
    halves = {name: np.float32(np.float16(array)) for name, array in made.lora.items()}
    return replace(made, lora=halves)


def native_engine(
    config: Mapping[str, Any],
    folder: Path,
    precision: str = "int4",
    capacity: int = 160,
    with_lora: bool = True,
    **options: Any,
) -> Engine:
    """Build the engine of a random model with this config in folder / "engine"."""
    model = write_plain_model(folder / "model", config=config)
    adapter = lora_adapter(model)
    if not with_lora:
        adapter = random_adapter(adapter.identity, 3, 5, scale=0.4)
    chosen = {"tree": Tree.triangle(), "dialect": "native", **options}
    build = check_build(
        open_checkpoint(str(model)),
        adapter,
        folder / "engine",
        BuildOptions(precision, capacity=capacity, **chosen),
    )
    build_engine(build)
    return open_engine(folder / "engine")


def read_text(backend: OrtBackend, adapter: Adapter, token_ids: np.ndarray, piece: int) -> None:
    """Start a text and prefill it, `piece` tokens at a time."""
    backend.cache.start(adapter)
    for start in range(0, len(token_ids), piece):
        tokens = token_ids[start : start + piece]
        step = backend.bind(prefill_layout(len(tokens), 0, 1), adapter)
        run_with(step, tokens)
        backend.cache.length += len(tokens)


def run_with(step: BoundStep, tokens: np.ndarray) -> np.ndarray:
    """Run a step whose first rows have these tokens; return its logits, or its top logits."""
    step.token_ids[0, : len(tokens)] = tokens
    step.run()
    return (step.top_logits if step.logits is None else step.logits).copy()
