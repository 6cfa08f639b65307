"""4-bit weights that keep a layer's outputs rather than its weights.

GPTQ (arXiv 2210.17323): columns are rounded one after the other, and each one's error is made up
for by the columns behind it, as far as the inputs seen in calibration say that they can. The scale
of each block of B is searched when its turn comes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bita.errors import ModelError
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
    num_rows, width = rows.shape
    upper, size = spread.upper, spread.grid.block_size
    rest = np.zeros((num_rows, len(upper)), np.float32)
    rest[:, :width] = rows
    values = np.empty(rest.shape, np.uint8)
    scales = np.empty((num_rows, len(upper) // size), np.float32)
    for block in range(scales.shape[1]):
        inside = slice(block * size, (block + 1) * size)
        behind = slice(inside.stop, None)
        importance = np.diag(upper)[inside] ** -2
        scales[:, block] = _best_scales(rest[:, inside], importance, spread.grid)
        values[:, inside], errors = _round_block(
            rest[:, inside], scales[:, block], upper[inside, inside]
        )
        rest[:, behind] -= errors @ upper[inside, behind]
    return packed_int4(values.reshape(num_rows, -1, size)), scales


def int4_pieces(
    chunks: Iterable[Float32Array], moments: Moments, label: str, grid: Int4Grid = MATMULNBITS
) -> Iterator[tuple[UInt8Array, Float32Array]]:
    """Quantize a layer's weights [N, K] in chunks of rows; yields packed values and scales.

    Rounds for the moments of the layer `label`, or to the nearest where there are none. Weights
    too large for their scales give scales that are not finite. Raises ModelError for moments that
    are not those of any inputs.
    """
    spread = _spread(moments[label], label, grid) if label in moments else None
    for chunk in chunks:
        with np.errstate(over="ignore", invalid="ignore"):
            pieces = quantize_int4_for(chunk, spread) if spread else quantize_int4(chunk, grid)
        yield pieces


def _spread(moments: Float32Array, label: str, grid: Int4Grid) -> ErrorSpread:
    try:
        if not np.isfinite(moments).all():
            raise np.linalg.LinAlgError("they are not finite")
        return ErrorSpread.of(moments, grid)
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
        error = block - _rounded(block, scales[:, None]) * scales[:, None]
        weighted = np.square(error) @ importance
        better = weighted < least
        least, best = np.where(better, weighted, least), np.where(better, scales, best)
    return best


def _round_block(
    block: Float32Array, scales: Float32Array, upper: Float32Array
) -> tuple[UInt8Array, Float32Array]:
    """Values 0..15 of a block [N, B], and the errors that the blocks behind it make up for."""
    columns = np.ascontiguousarray(block.T)
    values, errors = np.empty(columns.shape, np.uint8), np.empty_like(columns)
    for index, column in enumerate(columns):
        rounded = _rounded(column, scales)
        values[index] = rounded + ZERO_POINT
        errors[index] = (column - rounded * scales) / upper[index, index]
        columns[index + 1 :] -= upper[index, index + 1 :, None] * errors[index]
    return values.T, errors.T


def _rounded(weights: Float32Array, scales: Float32Array) -> Float32Array:
    """The nearest of -8..7; 0 where the scale is 0."""
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    rounded: Float32Array = np.clip(np.rint(weights * inverse), -ZERO_POINT, ZERO_POINT - 1)
    return rounded
