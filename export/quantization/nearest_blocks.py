"""Round weights to the nearest values in blocks of 32, without knowing their inputs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.export.quantization.blocks import Blocks, Float16Array, clear_past, in_blocks
from bita.export.quantization.fitted_grid import fitted_grid, inverse_of, rounded_int4
from bita.export.quantization.int4 import BLOCK_SIZE
from bita.export.quantization.int8 import MAX_INT8
from bita.export.quantization.scales import stored_scales
from bita.tensors import Float32Array

PART = 4096  # blocks at a time: 0.5 MB of float32, which fits into the cache
Rounded = tuple[npt.NDArray[Any], Float32Array, Float32Array]  # values, scales, minima


def nearest_int4(rows: Float32Array) -> Blocks:
    """Round rows [N, K] to 4 bits with scale and minimum.

    Weights beyond float16 yield scales or minima that are not finite (`check_blocks`).
    """
    values, scales, minima = _round_in_parts(rows, _nearest_int4, np.uint8)
    return Blocks(values, scales, minima, 4)


def nearest_int8(rows: Float32Array) -> Blocks:
    """Round rows [N, K] to symmetric 8 bits: the largest weight of a block becomes 127 or -127.

    Weights beyond float16 times 127 yield scales that are not finite (`check_blocks`).
    """
    values, scales, _ = _round_in_parts(rows, _nearest_int8, np.int8)
    return Blocks(values, scales, None, 8)


def _round_in_parts(
    rows: Float32Array, nearest: Callable[[Float32Array], Rounded], dtype: npt.DTypeLike
) -> tuple[npt.NDArray[Any], Float16Array, Float16Array]:
    """Return values [N, blocks, 32], scales and minima [N, blocks] of rows [N, K]."""
    blocks = in_blocks(rows)
    flat = blocks.reshape(-1, BLOCK_SIZE)
    values, (scales, minima) = np.empty(flat.shape, dtype), np.empty((2, len(flat)), np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(flat), PART):
            part = slice(start, start + PART)
            values[part], scales[part], minima[part] = nearest(flat[part])
    whole, shape = values.reshape(blocks.shape), blocks.shape[:2]
    clear_past(whole, rows.shape[1])
    return whole, scales.reshape(shape), minima.reshape(shape)


def _nearest_int4(blocks: Float32Array) -> Rounded:
    """Round blocks [M, 32]."""
    columns = np.ascontiguousarray(blocks.T)
    scales, minima = fitted_grid(columns, np.ones(len(columns), np.float32))
    columns -= minima
    columns *= inverse_of(scales)
    return rounded_int4(columns).T, scales, minima


def _nearest_int8(blocks: Float32Array) -> Rounded:
    """Round blocks [M, 32]; their minima are 0."""
    most = np.float32(MAX_INT8)
    scales = stored_scales(np.abs(blocks).max(-1) / most, np.float16)
    values = np.rint(blocks * inverse_of(scales)[:, None])
    return np.clip(values, -most, most, out=values), scales, np.zeros_like(scales)
