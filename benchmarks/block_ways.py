"""Ways to round the linear layers of a checkpoint to blocks, and the error of each."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bita.export.checkpoint import Checkpoint
from bita.export.dialects.decoder import LABELS
from bita.export.quantization.blocks import Blocks, dequantized
from bita.export.quantization.gptq import (
    ErrorSpread,
    Moments,
    quantize_blocks_for,
    quantize_int4_for,
    spread_of,
)
from bita.export.quantization.int4 import Int4Grid, quantize_int4
from bita.export.quantization.nearest_blocks import nearest_int4, nearest_int8
from bita.lora import SITES
from bita.tensors import Float32Array, UInt8Array

GRID = Int4Grid(scale_type=np.float16)  # symmetric blocks as in Q4_0


@dataclass(frozen=True)
class Way:
    """A way to round linear layers."""

    # rounds rows [N, K] to blocks, for the inputs that a spread describes if `sees`
    round: Callable[[Float32Array, ErrorSpread | None], Blocks]
    sees: bool = False
    precision: str = "int4"  # of the engine that keeps these blocks


def symmetric(rows: Float32Array, spread: ErrorSpread | None) -> Blocks:
    """Round to symmetric 4-bit blocks: GPTQ with a spread, the nearest values without."""
    packed, scales = quantize_int4_for(rows, spread) if spread else quantize_int4(rows, GRID)
    return Blocks(unpack_int4(packed), scales.astype(np.float16), None, 4)


def with_minima(rows: Float32Array, spread: ErrorSpread | None) -> Blocks:
    """Round to 4-bit blocks with minima, as a build does."""
    return quantize_blocks_for(rows, spread) if spread else nearest_int4(rows)


def unpack_int4(packed: UInt8Array) -> UInt8Array:
    """Unpack pairs [..., B / 2] to values [..., B], the low nibble first."""
    pairs = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)
    values: UInt8Array = pairs.reshape(*packed.shape[:-1], -1)
    return values


WAYS = {
    "nearest, symmetric": Way(symmetric),
    "nearest, minima": Way(with_minima),
    "gptq, symmetric": Way(symmetric, sees=True),
    "gptq, minima": Way(with_minima, sees=True),
    "8 bits": Way(lambda rows, _: nearest_int8(rows), precision="int8"),
}


def sites(config: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the label of each site, and the names of its linear layers."""
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        for site, layers in SITES.items():
            yield f"{prefix}{LABELS[site]}", [f"{prefix}{layer}.weight" for layer in layers]


def round_layers(checkpoint: Checkpoint, way: Way, moments: Moments) -> dict[str, Blocks]:
    """Round all linear layers to blocks."""
    blocks: dict[str, Blocks] = {}
    for label, names in sites(checkpoint.config):
        spread = spread_of(moments, label, GRID) if way.sees else None
        blocks |= {name: way.round(checkpoint.read(name), spread) for name in names}
    return blocks


def output_errors(
    checkpoint: Checkpoint, blocks: Mapping[str, Blocks], moments: Moments
) -> dict[str, float]:
    """Return the relative error of the outputs by kind of layer, for inputs with these moments.

    It is the root mean square over layers.
    """
    squares: dict[str, list[float]] = {}
    for label, names in sites(checkpoint.config):
        of_inputs = moments[label]
        for name in names:
            weights = checkpoint.read(name)
            error = dequantized(blocks[name], weights.shape[1]) - weights
            relative = _output_size(error, of_inputs) / _output_size(weights, of_inputs)
            squares.setdefault(name.split(".")[-2], []).append(relative)
    return {kind: round(float(np.sqrt(np.mean(each))), 5) for kind, each in squares.items()}


def _output_size(weights: Float32Array, moments: Float32Array) -> float:
    """Return the sum of the squares of all outputs."""
    return float(np.einsum("ij,ij->", weights @ moments, weights, dtype=np.float64))


def weight_errors(checkpoint: Checkpoint, blocks: Mapping[str, Blocks]) -> dict[str, float]:
    """Return the relative error of the weights by kind of layer."""
    sums: dict[str, list[float]] = {}
    for name, found in blocks.items():
        weights = checkpoint.read(name)
        error = dequantized(found, weights.shape[1]) - weights
        both = sums.setdefault(name.split(".")[-2], [0.0, 0.0])
        both[0] += float(np.square(error).sum(dtype=np.float64))
        both[1] += float(np.square(weights).sum(dtype=np.float64))
    return {kind: round((error / size) ** 0.5, 5) for kind, (error, size) in sums.items()}


def num_bytes(blocks: Mapping[str, Blocks]) -> int:
    """Return the bytes that the blocks take in an engine."""
    return sum(
        each.values.size * each.bits // 8
        + each.scales.nbytes
        + (0 if each.minima is None else each.minima.nbytes)
        for each in blocks.values()
    )
