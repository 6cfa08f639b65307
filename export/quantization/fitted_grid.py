"""The scale and the minimum of 4-bit blocks with the least weighted error.

A block's range is cut in several ways. For each the weights are rounded, and the scale and minimum
that fit these values best follow from least squares, and so does the error that is left. The
symmetric grid of Q4_0 is among those tried, so that weights that come from one keep their values.
"""

from collections.abc import Iterator

import numpy as np

from bita.export.quantization.int4 import ZERO_POINT
from bita.export.quantization.scales import stored_scales
from bita.tensors import Float32Array

MAX_INT4 = np.float32(15)
GROWN = np.float32(1.5)  # times what it was: below 2**-23, where float16 has one or two digits
# What is cut off below and above, as parts of a block's range; less than 0 widens it. Relative
# error of weights with a t distribution (4 degrees of freedom), without the symmetric grid: 8.92 %
# with the first pair alone, 8.40 % with all, 8.30 % with 100 pairs.
CUTS = (
    *((0.0, 0.0), (0.04, 0.04), (0.08, 0.08), (0.12, 0.12), (0.02, 0.02), (-0.02, -0.02)),
    *((0.05, 0.0), (0.0, 0.05), (0.1, 0.0), (0.0, 0.1), (0.1, 0.05), (0.05, 0.1)),
)


def fitted_grid(
    columns: Float32Array, importance: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """Scales and minima [N] of blocks [B, N] of weights, as float16 has them.

    importance: [B], of the squared error in each place of a block. Weights beyond float16 give
    scales or minima that are not finite. Cost: about ten passes over the blocks for each grid.
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
    # A scale that float16 cannot hold has grown; its values start at the smallest weight.
    minima = np.where(stored > GROWN * scales, low, mean - stored * levels)
    return stored, minima.astype(np.float16).astype(np.float32)


def _grids(low: Float32Array, high: Float32Array) -> Iterator[tuple[Float32Array, Float32Array]]:
    """The least value and the step [N] of each grid that is tried for blocks from low to high."""
    span = high - low
    for below, above in CUTS:
        yield low + np.float32(below) * span, span * (np.float32(1 - below - above) / MAX_INT4)
    extreme = np.maximum(-low, high)  # becomes -8 or 8, as in Q4_0 and MatMulNBits
    step = extreme / np.float32(ZERO_POINT)
    yield np.where(high < extreme, low, high - MAX_INT4 * step), step


def rounded_int4(values: Float32Array) -> Float32Array:
    """The nearest of 0..15, in place."""
    np.rint(values, out=values)
    np.maximum(values, np.float32(0), out=values)
    return np.minimum(values, MAX_INT4, out=values)


def inverse_of(scales: Float32Array) -> Float32Array:
    """1 over scales; 0 where the scale is 0."""
    return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)


def _fit(
    values: Float32Array, centered: Float32Array, importance: Float32Array, scratch: Float32Array
) -> tuple[Float32Array, Float32Array, Float32Array]:
    """The line through values and weights, both [B, N].

    centered: weights less their weighted mean. scratch: overwritten. Returns how much the squared
    error is less than that of the mean alone, the slope, and the mean of the values.
    """
    total = importance.sum()
    level = (importance @ values) / total
    product = importance @ np.multiply(values, centered, out=scratch)
    spread = importance @ np.square(values, out=scratch) - total * level * level
    slope = np.divide(product, spread, out=np.zeros_like(product), where=spread > 0)
    return slope * product, slope, level
