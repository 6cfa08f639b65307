"""4-bit rounding that preserves a layer's outputs rather than its weights.

GPTQ (arXiv 2210.17323): columns are rounded one after another, and the following columns compensate
the error of each one, according to the inputs seen in calibration. The scale of each block of B
columns is searched when the block is reached.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bita.errors import ModelError
from bita.export.quantization.blocks import Blocks, clear_past
from bita.export.quantization.fitted_grid import fitted_grid, inverse_of
from bita.export.quantization.int4 import (
    MATMULNBITS,
    ZERO_POINT,
    Int4Grid,
    packed_int4,
    quantize_int4,
)
from bita.tensors import Float32Array, FloatArray, UInt8Array

# Label of a linear layer -> [K, K], the sum over rows of the outer products of its inputs.
Moments = Mapping[str, Float32Array]
# A function of a block [N, B] and the importance [B] of its columns; returns scales and minima [N].
PickGrid = Callable[[Float32Array, Float32Array], tuple[Float32Array, Float32Array]]

DAMPING = (
    0.01  # share of the mean second moment added to all moments, since unseen inputs may occur
)
MAX_PLAIN_INVERSE = 64  # columns up to which triangular matrices get a general inverse
# Factors on the scale that maps the extreme weight to -8 or 7; a negative one maps it to the other
# end.
SCALE_FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, -1.0, -0.93, -0.87)


@dataclass(frozen=True, eq=False)
class ErrorSpread:
    """The compensation of an error in an input column by the following columns."""

    # [K, K], U of the Cholesky factors Uᵀ U of the inverse of the damped moments, with K padded to
    # whole blocks
    upper: Float32Array
    grid: Int4Grid

    @classmethod
    def of(cls, moments: Float32Array, grid: Int4Grid = MATMULNBITS) -> "ErrorSpread":
        """Compute it from the moments [K, K] of a layer's inputs.

        Inputs that were always zero neither compensate errors nor are compensated.
        """
        width = -(-len(moments) // grid.block_size) * grid.block_size
        damped = np.zeros((width, width))
        damped[: len(moments), : len(moments)] = moments
        diagonal = np.einsum("ii->i", damped)
        diagonal += DAMPING * float(diagonal.mean()) or 1.0
        # damped = R Rᵀ with R upper triangular, and U = R⁻¹, so the moments need not be inverted
        lower = np.linalg.cholesky(damped[::-1, ::-1])
        return cls(_upper_inverse(lower[::-1, ::-1]).astype(np.float32), grid)


def quantize_int4_for(rows: Float32Array, spread: ErrorSpread) -> tuple[UInt8Array, Float32Array]:
    """Quantize rows [N, K] as `quantize_int4`, but for the inputs from which `spread` was made."""

    def pick(block: Float32Array, importance: Float32Array) -> tuple[Float32Array, Float32Array]:
        scales = _best_scales(block, importance, spread.grid)
        return scales, np.zeros_like(scales)

    values, scales, _ = _sweep(rows, spread, pick, -ZERO_POINT)
    return packed_int4(values), scales


def quantize_blocks_for(rows: Float32Array, spread: ErrorSpread) -> Blocks:
    """Quantize rows [N, K] to blocks of 32 with scale and minimum, for the inputs of `spread`.

    Weights beyond float16 yield scales or minima that are not finite (`check_blocks`).
    """

    def pick(block: Float32Array, importance: Float32Array) -> tuple[Float32Array, Float32Array]:
        return fitted_grid(np.ascontiguousarray(block.T), importance)

    with np.errstate(over="ignore", invalid="ignore"):
        values, scales, minima = _sweep(rows, spread, pick, 0)
    clear_past(values, rows.shape[1])
    return Blocks(values, scales.astype(np.float16), minima.astype(np.float16), 4)


def _sweep(
    rows: Float32Array, spread: ErrorSpread, pick: PickGrid, lowest: int
) -> tuple[UInt8Array, Float32Array, Float32Array]:
    """Return values 0..15 [N, blocks, B], scales and minima [N, blocks] of rows [N, K].

    A weight is scale * (value + lowest) + minimum.
    """
    num_rows, width = rows.shape
    upper, size = spread.upper, spread.grid.block_size
    rest = np.zeros((num_rows, len(upper)), np.float32)
    rest[:, :width] = rows
    values = np.empty(rest.shape, np.uint8)
    scales = np.empty((num_rows, len(upper) // size), np.float32)
    minima = np.empty_like(scales)
    for block in range(scales.shape[1]):
        inside = slice(block * size, (block + 1) * size)
        after = slice(inside.stop, None)
        seen = slice(min(size, width - inside.start))  # excludes the padding of the last block
        importance = np.diag(upper)[inside] ** -2
        scales[:, block], minima[:, block] = pick(rest[:, inside][:, seen], importance[seen])
        values[:, inside], errors = _round_block(
            rest[:, inside] - minima[:, block, None],
            scales[:, block],
            upper[inside, inside],
            lowest,
        )
        rest[:, after] -= errors @ upper[inside, after]
    return values.reshape(num_rows, -1, size), scales, minima


def int4_pieces(
    chunks: Iterable[Float32Array], moments: Moments, label: str, grid: Int4Grid = MATMULNBITS
) -> Iterator[tuple[UInt8Array, Float32Array]]:
    """Quantize a layer's weights [N, K] in chunks of rows; yield packed values and scales.

    Weights too large for the type of the scales yield scales that are not finite.

    Args:
        chunks: The weights, a few rows at a time.
        moments: Moments by label; without those of the layer, weights are rounded to the nearest
            values.
        label: The layer.
        grid: The spacing of the values.

    Raises:
        ModelError: if the moments cannot be those of inputs.
    """
    spread = spread_of(moments, label, grid)
    for chunk in chunks:
        with np.errstate(over="ignore", invalid="ignore"):
            pieces = quantize_int4_for(chunk, spread) if spread else quantize_int4(chunk, grid)
        yield pieces


def spread_of(moments: Moments, label: str, grid: Int4Grid = MATMULNBITS) -> ErrorSpread | None:
    """Return the ErrorSpread of the layer `label`; None if it has no moments.

    Raises:
        ModelError: if the moments cannot be those of inputs.
    """
    if label not in moments:
        return None
    try:
        if not np.isfinite(moments[label]).all():
            raise np.linalg.LinAlgError("they are not finite")
        return ErrorSpread.of(moments[label], grid)
    except np.linalg.LinAlgError as error:
        raise ModelError(
            f"the moments of the inputs of {label} cannot be used ({error}): the inputs are too "
            "large. Build with --quantizer rtn"
        ) from error


def _upper_inverse(upper: FloatArray) -> FloatArray:
    """Return the inverse of an upper triangular matrix, computed recursively by halves.

    This takes a third of the arithmetic of a general inverse, most of it in large products.
    """
    if len(upper) <= MAX_PLAIN_INVERSE:
        return np.linalg.inv(upper)
    half = len(upper) // 2
    head, tail = slice(half), slice(half, None)
    inverse = np.zeros_like(upper)
    inverse[head, head] = _upper_inverse(upper[head, head])
    inverse[tail, tail] = _upper_inverse(upper[tail, tail])
    inverse[head, tail] = -(inverse[head, head] @ upper[head, tail] @ inverse[tail, tail])
    return inverse


def _best_scales(block: Float32Array, importance: Float32Array, grid: Int4Grid) -> Float32Array:
    """Return the scales [N] of a block [N, B] with the least weighted error among those tried."""
    extreme = grid.extreme_scales(block)
    least = np.full(len(block), np.inf, np.float32)
    best = extreme
    for factor in SCALE_FACTORS:
        if factor < 0 and not grid.negative_scales:
            continue
        scales = grid.stored(extreme * np.float32(factor))
        error = block - _round(block, scales[:, None], -ZERO_POINT) * scales[:, None]
        weighted = np.square(error) @ importance
        better = weighted < least
        least, best = np.where(better, weighted, least), np.where(better, scales, best)
    return best


def _round_block(
    block: Float32Array, scales: Float32Array, upper: Float32Array, lowest: int
) -> tuple[UInt8Array, Float32Array]:
    """Return values 0..15 of a block [N, B], and the errors that later blocks compensate."""
    columns = np.ascontiguousarray(block.T)
    values, errors = np.empty(columns.shape, np.uint8), np.empty_like(columns)
    for index, column in enumerate(columns):
        rounded = _round(column, scales, lowest)
        values[index] = rounded - lowest
        errors[index] = (column - rounded * scales) / upper[index, index]
        columns[index + 1 :] -= upper[index, index + 1 :, None] * errors[index]
    return values.T, errors.T


def _round(weights: Float32Array, scales: Float32Array, lowest: int) -> Float32Array:
    """Round to the nearest of `lowest` and the 15 numbers above it; 0 where the scale is 0."""
    rounded: Float32Array = np.clip(np.rint(weights * inverse_of(scales)), lowest, lowest + 15)
    return rounded
