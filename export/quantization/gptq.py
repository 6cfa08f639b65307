"""4-bit weights that keep a layer's outputs rather than its weights.

GPTQ (arXiv 2210.17323): columns are rounded one after the other, and each one's error is made up
for by the columns behind it, as far as the inputs seen in calibration say that they can. The scale
of each block of B is searched when its turn comes.
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
# From a block [N, B] and the importance [B] of its columns: scales and minima [N].
PickGrid = Callable[[Float32Array, Float32Array], tuple[Float32Array, Float32Array]]

DAMPING = 0.01  # of the mean second moment, added to all: what was not seen is not trusted
MAX_PLAIN_INVERSE = 64  # columns; triangular matrices up to this are inverted like any other
# On the scale that takes the extreme weight to -8 or 7; below zero it goes to the other side.
SCALE_FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, -1.0, -0.93, -0.87)


@dataclass(frozen=True, eq=False)
class ErrorSpread:
    """How an error in one input column is made up for by those behind it.

    upper: [K, K], U of the Cholesky factors Uᵀ U of the inverse of the damped moments, K
    padded to whole blocks.
    """

    upper: Float32Array
    grid: Int4Grid

    @classmethod
    def of(cls, moments: Float32Array, grid: Int4Grid = MATMULNBITS) -> "ErrorSpread":
        """From the moments of a layer's inputs [K, K]; inputs that were always zero stand alone."""
        width = -(-len(moments) // grid.block_size) * grid.block_size
        damped = np.zeros((width, width))
        damped[: len(moments), : len(moments)] = moments
        diagonal = np.einsum("ii->i", damped)
        diagonal += DAMPING * float(diagonal.mean()) or 1.0
        # damped = R Rᵀ, R upper triangular, and U = R⁻¹: the moments need not be inverted
        lower = np.linalg.cholesky(damped[::-1, ::-1])
        return cls(_upper_inverse(lower[::-1, ::-1]).astype(np.float32), grid)


def quantize_int4_for(rows: Float32Array, spread: ErrorSpread) -> tuple[UInt8Array, Float32Array]:
    """As `quantize_int4`, for the inputs that `spread` was made of; rows: [N, K]."""

    def pick(block: Float32Array, importance: Float32Array) -> tuple[Float32Array, Float32Array]:
        scales = _best_scales(block, importance, spread.grid)
        return scales, np.zeros_like(scales)

    values, scales, _ = _sweep(rows, spread, pick, -ZERO_POINT)
    return packed_int4(values), scales


def quantize_blocks_for(rows: Float32Array, spread: ErrorSpread) -> Blocks:
    """Rows [N, K] in blocks of 32 with scale and minimum, for the inputs of `spread`.

    Weights beyond float16 give scales or minima that are not finite (`check_blocks`).
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
    """Values 0..15 [N, blocks, B], scales and minima [N, blocks] of rows [N, K].

    lowest: what the value 0 stands for, so that weight = scale * (value + lowest) + minimum.
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
        behind = slice(inside.stop, None)
        seen = slice(min(size, width - inside.start))  # less than all in the last block
        importance = np.diag(upper)[inside] ** -2
        scales[:, block], minima[:, block] = pick(rest[:, inside][:, seen], importance[seen])
        values[:, inside], errors = _round_block(
            rest[:, inside] - minima[:, block, None],
            scales[:, block],
            upper[inside, inside],
            lowest,
        )
        rest[:, behind] -= errors @ upper[inside, behind]
    return values.reshape(num_rows, -1, size), scales, minima


def int4_pieces(
    chunks: Iterable[Float32Array], moments: Moments, label: str, grid: Int4Grid = MATMULNBITS
) -> Iterator[tuple[UInt8Array, Float32Array]]:
    """Quantize a layer's weights [N, K] in chunks of rows; yields packed values and scales.

    Rounds for the moments of the layer `label`, or to the nearest where there are none. Weights
    too large for their scales give scales that are not finite. Raises ModelError for moments that
    are not those of any inputs.
    """
    spread = spread_of(moments, label, grid)
    for chunk in chunks:
        with np.errstate(over="ignore", invalid="ignore"):
            pieces = quantize_int4_for(chunk, spread) if spread else quantize_int4(chunk, grid)
        yield pieces


def spread_of(moments: Moments, label: str, grid: Int4Grid = MATMULNBITS) -> ErrorSpread | None:
    """What the layer `label` is rounded for; None if there are no moments of it.

    Raises ModelError for moments that are not those of any inputs.
    """
    if label not in moments:
        return None
    try:
        if not np.isfinite(moments[label]).all():
            raise np.linalg.LinAlgError("they are not finite")
        return ErrorSpread.of(moments[label], grid)
    except np.linalg.LinAlgError as error:
        raise ModelError(
            f"the sums of squares of what {label} reads cannot be used ({error}): its inputs are "
            "too large. Build with --quantizer rtn"
        ) from error


def _upper_inverse(upper: FloatArray) -> FloatArray:
    """The inverse of an upper triangular matrix, by halves.

    This takes a third of the arithmetic of a general inverse, and most of it in large products.
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
    """[N] scales of a block [N, B], of those tried the ones with the least weighted error."""
    extreme = grid.extreme_scales(block)
    least = np.full(len(block), np.inf, np.float32)
    best = extreme
    for factor in SCALE_FACTORS:
        if factor < 0 and not grid.negative_scales:
            continue
        scales = grid.stored(extreme * np.float32(factor))
        error = block - _rounded(block, scales[:, None], -ZERO_POINT) * scales[:, None]
        weighted = np.square(error) @ importance
        better = weighted < least
        least, best = np.where(better, weighted, least), np.where(better, scales, best)
    return best


def _round_block(
    block: Float32Array, scales: Float32Array, upper: Float32Array, lowest: int
) -> tuple[UInt8Array, Float32Array]:
    """Values 0..15 of a block [N, B], and the errors that the blocks behind it make up for."""
    columns = np.ascontiguousarray(block.T)
    values, errors = np.empty(columns.shape, np.uint8), np.empty_like(columns)
    for index, column in enumerate(columns):
        rounded = _rounded(column, scales, lowest)
        values[index] = rounded - lowest
        errors[index] = (column - rounded * scales) / upper[index, index]
        columns[index + 1 :] -= upper[index, index + 1 :, None] * errors[index]
    return values.T, errors.T


def _rounded(weights: Float32Array, scales: Float32Array, lowest: int) -> Float32Array:
    """The nearest of `lowest` and the 15 whole numbers above it; 0 where the scale is 0."""
    rounded: Float32Array = np.clip(np.rint(weights * inverse_of(scales)), lowest, lowest + 15)
    return rounded
