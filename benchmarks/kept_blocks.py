"""Compare every weight of an engine with native operators with the blocks of its model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bita.engine import GRAPH_FILE, Engine
from bita.export.dialects.decoder import LABELS
from bita.export.quantization.blocks import dequantized
from bita.export.quantization.tiles import GATED_ROWS, TILE_ROWS, Tiles, unpacked
from bita.lora import SITES
from bita.tensors import EMBEDDINGS, Float32Array, TensorSource

TABLE_ROWS = 4096  # rows of the embedding table read at a time
LOOKUPS = ("Embed", "Gather")  # nodes that read only a few rows of a weight
Initializers = Mapping[str, ir.Value]


def count_kept(engine: Engine, checkpoint: TensorSource) -> dict[str, int]:
    """Count the weights of linear layers and the embedding table, and the bit-identical ones.

    Args:
        engine: Engine of dialect native whose inner size is a multiple of GATED_ROWS.
        checkpoint: Its model, whose values are dequantized by the package that wrote it.
    """
    initializers = ir.load(engine.file(GRAPH_FILE)).graph.initializers
    kept = total = 0
    for label, first_row, expected in _expected(checkpoint):
        found = _read(initializers, label, first_row, *expected.shape)
        kept += int((found.view(np.uint32) == expected.view(np.uint32)).sum())
        total += expected.size
    return {"weights": total, "kept": kept}


def step_weight_bytes(engine: Engine) -> int:
    """Return the bytes of weights that each decode step reads, without lookup tables."""
    initializers = ir.load(engine.file(GRAPH_FILE)).graph.initializers.values()
    return sum(_num_bytes(value) for value in initializers if not _is_looked_up(value))


def _is_looked_up(value: ir.Value) -> bool:
    return all(node.op_type in LOOKUPS for node in value.consumers())


def _num_bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else int(value.const_value.nbytes)


def _expected(checkpoint: TensorSource) -> Iterator[tuple[str, int, Float32Array]]:
    """Yield the label of each weight in the graph, its first row, and the expected rows."""
    for index in range(checkpoint.config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        for site, names in SITES.items():
            layers = [checkpoint.read(f"{prefix}{name}.weight") for name in names]
            yield f"{prefix}{LABELS[site]}", 0, _side_by_side(layers, site == "gate_up")
    num_rows = checkpoint.shape(EMBEDDINGS)[0]
    for start in range(0, num_rows, TABLE_ROWS):
        stop = min(start + TABLE_ROWS, num_rows)
        yield EMBEDDINGS, start, checkpoint.read(EMBEDDINGS, start, stop)


def _side_by_side(layers: Sequence[Float32Array], is_gated: bool) -> Float32Array:
    """Return the rows of merged layers in the order of the graph."""
    if not is_gated:
        return np.concatenate(layers)
    width = layers[0].shape[1]
    groups = [layer.reshape(-1, GATED_ROWS, width) for layer in layers]
    return np.stack(groups, axis=1).reshape(-1, width)


def _read(
    initializers: Initializers, label: str, first_row: int, num_rows: int, width: int
) -> Float32Array:
    """Read rows of a weight in the graph; `first_row` must be a multiple of TILE_ROWS."""
    tiles = slice(first_row // TILE_ROWS, -(-(first_row + num_rows) // TILE_ROWS))

    def part(name: str) -> npt.NDArray[Any] | None:
        value = initializers.get(f"{label}.{name}")
        return value.const_value.numpy()[tiles] if value and value.const_value else None

    values, scales = part("values"), part("scales")
    assert values is not None
    assert scales is not None
    return dequantized(unpacked(Tiles(values, scales, part("minima")), num_rows), width)
