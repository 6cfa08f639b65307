"""Linear layers of native operators in numpy, with norms and activations, in float64.

Weights are dequantized from their blocks, whose layout docs/native.md describes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BLOCK, TILE = 32, 16
Array = np.ndarray
Attributes = Mapping[str, Any]
Inputs = Sequence[Array | None]


def dequantized(parts: Inputs, bits: int, num_out: int, num_in: int) -> Array:
    """Return the weights [num_out, num_in] of values, scales, and minima or None."""
    values, scales, minima = parts
    assert values is not None
    assert scales is not None
    numbers = unpacked(values, bits)
    if minima is None and bits == 4:
        numbers = numbers - 8
    weights = scales.astype(np.float64).transpose(0, 2, 1)[..., None] * numbers
    if minima is not None:
        weights = weights + minima.astype(np.float64).transpose(0, 2, 1)[..., None]
    num_tiles, _, num_blocks, _ = weights.shape
    return weights.reshape(num_tiles * TILE, num_blocks * BLOCK)[:num_out, :num_in]


def unpacked(values: Array, bits: int) -> Array:
    """Return numbers [tiles, outputs of a tile, blocks, inputs of a block] in float64."""
    num_tiles, num_blocks, _ = values.shape
    lines = values.reshape(num_tiles, num_blocks, -1, TILE, 4)
    numbers = np.empty((num_tiles, TILE, num_blocks, BLOCK))
    for index in range(lines.shape[2]):
        line = lines[:, :, index].transpose(0, 2, 1, 3)
        if bits == 4:
            numbers[..., 8 * index : 8 * index + 4] = line & 15
            numbers[..., 8 * index + 4 : 8 * index + 8] = line >> 4
        else:
            numbers[..., 4 * index : 4 * index + 4] = line.astype(np.int8)
    return numbers


def gate_and_up(parts: Inputs, bits: int, num_out: int, num_in: int) -> tuple[Array, Array]:
    """Return gate and up, [num_out, num_in] each; 32 rows of gate alternate with 32 of up."""
    padded = -(-num_out // BLOCK) * BLOCK
    groups = dequantized(parts, bits, 2 * padded, num_in).reshape(-1, 2, BLOCK, num_in)
    gate, up = groups[:, 0].reshape(padded, num_in), groups[:, 1].reshape(padded, num_in)
    return gate[:num_out], up[:num_out]


def linear(rows: Array, parts: Inputs, first: Any, bits: int, num_out: int, layer: int) -> Array:
    """Multiply rows by a linear layer; `parts` are values, scales, minima, bias, down, up."""
    product = rows @ dequantized(parts[:3], bits, num_out, rows.shape[1]).T
    return with_extras(product, rows, parts[3], (first, *parts[4:]), layer)


def with_extras(
    product: Array,
    rows: Array,
    bias: Array | None,
    lora: Inputs,
    layer: int,
    is_gated: bool = False,
) -> Array:
    """Add the bias to a product, and LoRA to the rows from the first mask row."""
    if bias is not None:
        product = product + bias
    first, downs, ups = lora
    if first is not None:
        assert downs is not None
        assert ups is not None
        down = downs[layer, :, : rows.shape[1]].astype(np.float64).T
        tiles = ups[layer].astype(np.float64)
        if is_gated:  # two tiles of gate alternate with two of up
            sides = tiles.reshape(-1, 2, 2, *tiles.shape[1:]).swapaxes(0, 1)
            sizes = -1, *tiles.shape[1:]
            half = product.shape[1] // 2
            up = np.concatenate([outputs_of(side.reshape(sizes), half) for side in sides], axis=1)
        else:
            up = outputs_of(tiles, product.shape[1])
        product[first[0] :] += rows[first[0] :] @ down @ up
    return product


def outputs_of(tiles: Array, num_out: int) -> Array:
    """Return a matrix [r, num_out] from tiles [n, r, 16]."""
    return tiles.transpose(1, 0, 2).reshape(tiles.shape[1], -1)[:, :num_out]


def quantized(rows: Array, attributes: Attributes) -> Array:
    """Return rows as they are between operators: rounded to 8 bits if the graph rounds."""
    return rounded(rows) if attributes["rounds"] else rows


def rounded(rows: Array) -> Array:
    """Round rows [Q, K] to 8 bits, with a scale for each block of 32."""
    width = rows.shape[1]
    blocks = np.pad(rows, ((0, 0), (0, -width % BLOCK))).reshape(len(rows), -1, BLOCK)
    largest = np.abs(blocks).max(-1, keepdims=True)
    scales = np.where(largest == 0, 1, largest) / 127
    values: Array = np.rint(blocks / scales) * scales
    return values.reshape(len(rows), -1)[:, :width]


def rms_norm(rows: Array, weight: Array, epsilon: float) -> Array:
    mean = np.square(rows).mean(-1, keepdims=True)
    return rows / np.sqrt(mean + epsilon) * weight.astype(np.float64)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh}
