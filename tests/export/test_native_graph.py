"""Graphs of native operators, by their definition in numpy, against the ort dialect's in float32.

The ort engine is of the very weights that are in the native graph's blocks, so that both compute
the same but for rounding.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_engine import CONFIG, write_plain_model
from native_reference import NativeGraph, gate_and_up, use_reference_operators
from tiny_models import FAMILIES, write_tiny_model

from bita.adapter import Adapter, random_adapter
from bita.engine import GRAPH_FILE, Engine, open_engine
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.checkpoint import Checkpoint
from bita.export.dialects.decoder import LABELS
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.lora import SITES, site_sizes, starting_lora
from bita.runtime.backends.layout import prefill_layout, tree_layout
from bita.runtime.backends.ort_backend import OrtBackend
from bita.tensors import EMBEDDINGS, HEAD
from bita.tree import Tree

CAPACITY = 160
TOLERANCE = 2e-4
TREE = Tree.from_paths([(1,), (1, 1), (1, 1, 1), (2,), (1, 2), (2, 1), (4,)], num_masks=3)
ODD: Mapping[str, Any] = {  # 32 divides neither the hidden size nor the inner one
    **CONFIG,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
}


class BlockCheckpoint:
    """A checkpoint whose linear layers and tables are those of a native graph's blocks."""

    def __init__(self, checkpoint: Checkpoint, graph: NativeGraph) -> None:
        self._checkpoint = checkpoint
        self._tensors = block_weights(checkpoint, graph)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checkpoint, name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        if name in self._tensors:
            return np.ascontiguousarray(self._tensors[name][start:stop], np.float32)
        return self._checkpoint.read(name, start, stop)


def block_weights(checkpoint: Checkpoint, graph: NativeGraph) -> dict[str, np.ndarray]:
    """Every weight of a linear layer or table by its name in the checkpoint, out of its blocks."""
    shape = checkpoint.shape
    tables = [(EMBEDDINGS, EMBEDDINGS), (HEAD, "lm_head")]
    found = {
        name: graph.weight(label, bits_of(graph, label), *shape(name))
        for name, label in tables
        if name in checkpoint.names()
    }
    for index in range(checkpoint.config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        for site, layers in SITES.items():
            names = [f"{prefix}{layer}.weight" for layer in layers]
            sizes = [shape(name)[0] for name in names]
            label, num_in = prefix + LABELS[site], shape(names[0])[1]
            bits = bits_of(graph, label)
            if site == "gate_up":
                found |= zip(
                    names, gate_and_up(graph.parts(label), bits, sizes[0], num_in), strict=True
                )
            else:
                rows = graph.weight(label, bits, sum(sizes), num_in)
                found |= zip(names, np.split(rows, np.cumsum(sizes)[:-1]), strict=True)
    return found


def bits_of(graph: NativeGraph, label: str) -> int:
    return 4 if graph.constants[f"{label}.values"].dtype == np.uint8 else 8


def engines(
    model: Path, adapter: Adapter, folder: Path, precision: str, cache_type: str
) -> tuple[Engine, Engine]:
    """The native engine of a model, and the ort dialect's in float32 of the same weights."""
    checkpoint = open_checkpoint(str(model))
    options = BuildOptions(
        precision, capacity=CAPACITY, tree=TREE, dialect="native", cache_type=cache_type
    )
    build_engine(check_build(checkpoint, adapter, folder / "native", options))
    graph = NativeGraph.load(folder / "native" / GRAPH_FILE)
    same: Any = BlockCheckpoint(checkpoint, graph)
    adapter = replace(adapter, identity=identify(same))
    build_engine(
        check_build(
            same, adapter, folder / "ort", BuildOptions("fp32", capacity=CAPACITY, tree=TREE)
        )
    )
    return open_engine(folder / "native"), open_engine(folder / "ort")


def tree_logits(engine: Engine, adapter: Adapter) -> np.ndarray:
    """Logits of all rows of TREE behind a text of 60 tokens, a part of it accepted from a tree."""
    text = np.random.default_rng(1).integers(3, 300, 60)
    backend = OrtBackend(engine, num_threads=1)
    backend.cache.start(adapter)
    for start in range(0, len(text), 25):
        piece = text[start : start + 25]
        step = backend.bind(prefill_layout(len(piece), 0, 2), adapter)
        step.token_ids[0, : len(piece)] = piece
        step.run()
        backend.cache.length += len(piece)
    step = backend.bind(tree_layout(TREE, 2), adapter, with_logits=True)
    for tokens in np.random.default_rng(2).integers(3, 300, (2, TREE.num_nodes)):
        step.token_ids[0, : TREE.num_nodes] = tokens
        step.run()
        backend.cache.commit([0, 4, 6])
    assert step.logits is not None
    np.testing.assert_array_equal(step.logits.argmax(-1), step.top_ids[:, 0])
    np.testing.assert_array_equal(step.logits.max(-1), step.top_logits[:, 0])
    return step.logits.copy()


def lora_adapter(model: Path, scale: float = 0.5) -> Adapter:
    checkpoint = open_checkpoint(str(model))
    identity = identify(checkpoint)
    lora = starting_lora(site_sizes(checkpoint), identity.num_layers, 3, seed=0)
    return random_adapter(identity, 3, 5, scale=scale, lora_like=lora)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_every_family_are_those_of_the_ort_dialect(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes and masks behind a cached text: windows, ropes, prefix, soft caps, scales, LoRA."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = write_tiny_model(family, tmp_path / "model")
    assert_equal_logits(model, lora_adapter(model), tmp_path, monkeypatch, "int4")


@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        ODD,
        {**CONFIG, "model_type": "phi3", "head_dim": 32, "partial_rotary_factor": 0.5},
        {**CONFIG, "attention_bias": True, "mlp_bias": True},
    ],
    ids=["llama", "odd sizes", "half of a head turns", "biases everywhere"],
)
def test_logits_of_unusual_sizes(
    config: Mapping[str, Any], precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_plain_model(tmp_path / "model", config=config)
    adapter = random_adapter(identify(open_checkpoint(str(model))), 3, 5, scale=0.5)
    assert_equal_logits(model, adapter, tmp_path, monkeypatch, precision)


def assert_equal_logits(
    model: Path, adapter: Adapter, folder: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    native, other = engines(model, adapter, folder, precision, "float32")
    use_reference_operators(monkeypatch)
    found, expected = tree_logits(native, adapter), tree_logits(other, adapter)
    assert expected.std() > 1  # else a tolerance in logits says nothing
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
