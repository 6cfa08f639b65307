"""The scale and the minimum of 4-bit blocks with the least weighted error.

A block's range is clipped in several ways. For each of them the weights are rounded, and least
squares give the scale and minimum that fit these values best, and the remaining error. The
symmetric grid of Q4_0 is among those tried, so that weights from such a grid keep their values.
"""

from collections.abc import Iterator

import numpy as np

from bita.export.quantization.int4 import ZERO_POINT
from bita.export.quantization.scales import stored_scales
from bita.tensors import Float32Array

MAX_INT4 = np.float32(15)
GROWN = np.float32(1.5)  # growth of a scale by rounding: below 2**-23, with one or two digits
# Shares of a block's range that are clipped below and above; negative shares widen the range.
# Relative error of weights with a t distribution of 4 degrees of freedom, without symmetric grid:
# - 8.92 % with only the first pair
# - 8.40 % with all pairs
# - 8.30 % with 100 pairs
CUTS = (
    *((0.0, 0.0), (0.04, 0.04), (0.08, 0.08), (0.12, 0.12), (0.02, 0.02), (-0.02, -0.02)),
    *((0.05, 0.0), (0.0, 0.05), (0.1, 0.0), (0.0, 0.1), (0.1, 0.05), (0.05, 0.1)),
)


def fitted_grid(
    columns: Float32Array, importance: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """Return scales and minima [N] of blocks, rounded to float16.

    Weights beyond float16 yield scales or minima that are not finite. Each grid takes about ten
    passes over the blocks.

    Args:
        columns: Blocks of weights, [B, N].
        importance: The weight of the squared error in each place of a block, [B].
    """
    low, total = columns.min(0), importance.sum()
    mean = (importance @ columns) / total
    centered = columns - mean
    best = np.full_like(low, -1.0)
    scales, levels = np.zeros_like(low), np.zeros_like(low)
    values, scratch = np.empty_like(columns), np.empty_like(columns)
    for start, step in _grids(low, columns.max(0)):
        np.subtract(columns, start, out=values)
        values *= inverse_of(step)
        gain, slope, level = _fit(rounded_int4(values), centered, importance, scratch)
        better = gain > best
        best, scales = np.where(better, gain, best), np.where(better, slope, scales)
        levels = np.where(better, level, levels)
    stored = stored_scales(scales, np.float16)
    # A scale too small for float16 has grown; its values start at the smallest weight.
    minima = np.where(stored > GROWN * scales, low, mean - stored * levels)
    return stored, minima.astype(np.float16).astype(np.float32)


def _grids(low: Float32Array, high: Float32Array) -> Iterator[tuple[Float32Array, Float32Array]]:
    """Yield the lowest value and the step [N] of each grid to try for blocks from low to high."""
    span = high - low
    for below, above in CUTS:
        yield low + np.float32(below) * span, span * (np.float32(1 - below - above) / MAX_INT4)
    extreme = np.maximum(-low, high)  # becomes -8 or 8, as in Q4_0 and MatMulNBits
    step = extreme / np.float32(ZERO_POINT)
    yield np.where(high < extreme, low, high - MAX_INT4 * step), step


def rounded_int4(values: Float32Array) -> Float32Array:
    """Round to the nearest of 0..15, in place."""
    np.rint(values, out=values)
    np.maximum(values, np.float32(0), out=values)
    return np.minimum(values, MAX_INT4, out=values)


def inverse_of(scales: Float32Array) -> Float32Array:
    """Return 1 / scales, and 0 where the scale is 0."""
    return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)


def _fit(
    values: Float32Array, centered: Float32Array, importance: Float32Array, scratch: Float32Array
) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Fit a line to values and weights, both [B, N].

    `centered` are the weights minus their weighted mean; `scratch` is overwritten. Return the
    reduction of the squared error compared with the mean alone, the slope, and the mean of values.
    """
    total = importance.sum()
    level = (importance @ values) / total
    product = importance @ np.multiply(values, centered, out=scratch)
    spread = importance @ np.square(values, out=scratch) - total * level * level
    slope = np.divide(product, spread, out=np.zeros_like(product), where=spread > 0)
    return slope * product, slope, level
