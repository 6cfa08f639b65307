"""An engine with native operators, and a float32 ort engine with exactly the same weights.

They differ only by rounding, so their logits can be compared closely.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from reference_layers import gate_and_up
from reference_session import NativeGraph

from bita.adapter import Adapter
from bita.engine import GRAPH_FILE, Engine, open_engine
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.checkpoint import Checkpoint
from bita.export.dialects.decoder import LABELS
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.lora import SITES
from bita.runtime.backends.layout import prefill_layout, tree_layout
from bita.runtime.backends.ort_backend import OrtBackend
from bita.tensors import EMBEDDINGS, HEAD
from bita.tree import Tree

CAPACITY = 160
TREE = Tree.from_paths([(1,), (1, 1), (1, 1, 1), (2,), (1, 2), (2, 1), (4,)], num_masks=3)
TEXT_LENGTH = 60  # longer than the windows of the tiny models


class BlockCheckpoint:
    """A checkpoint whose linear layers and tables come from the blocks of a native graph."""

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
    """Return the dequantized weights of linear layers and tables by their checkpoint names."""
    shape = checkpoint.shape
    tables = [(EMBEDDINGS, EMBEDDINGS), (HEAD, "lm_head")]
    found = {
        name: graph.weight(label, *shape(name))
        for name, label in tables
        if name in checkpoint.names()
    }
    for index in range(checkpoint.config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        for site, layers in SITES.items():
            names = [f"{prefix}{layer}.weight" for layer in layers]
            sizes = [shape(name)[0] for name in names]
            label, num_in = prefix + LABELS[site], shape(names[0])[1]
            if site == "gate_up":
                parts, bits = graph.parts(label), graph.bits(label)
                sides = gate_and_up(parts, bits, sizes[0], num_in)
                found |= zip(names, sides, strict=True)
            else:
                rows = graph.weight(label, sum(sizes), num_in)
                found |= zip(names, np.split(rows, np.cumsum(sizes)[:-1]), strict=True)
    return found


def twin_engines(
    model: Path, adapter: Adapter, folder: Path, precision: str, cache_type: str
) -> tuple[Engine, Engine]:
    """Build the native engine of a model, and the float32 ort engine with the same weights."""
    checkpoint = open_checkpoint(str(model))
    options = BuildOptions(
        precision, capacity=CAPACITY, tree=TREE, dialect="native", cache_type=cache_type
    )
    build_engine(check_build(checkpoint, adapter, folder / "native", options))
    graph = NativeGraph.load(folder / "native" / GRAPH_FILE)
    same: Any = BlockCheckpoint(checkpoint, graph)
    adapter = replace(adapter, identity=identify(same))
    options = BuildOptions("fp32", capacity=CAPACITY, tree=TREE)
    build_engine(check_build(same, adapter, folder / "ort", options))
    return open_engine(folder / "native"), open_engine(folder / "ort")


def tree_logits(engine: Engine, adapter: Adapter, num_threads: int = 1) -> np.ndarray:
    """Return the logits of all rows of TREE after a text that ends with committed branches."""
    text = np.random.default_rng(1).integers(3, 300, TEXT_LENGTH)
    backend = OrtBackend(engine, num_threads)
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


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
