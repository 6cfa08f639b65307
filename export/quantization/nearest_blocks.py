"""Weights rounded to the nearest values of blocks of 32, without knowing their inputs."""

import numpy as np

from bita.export.quantization.blocks import Blocks, clear_behind, in_blocks
from bita.export.quantization.fitted_grid import fitted_grid, inverse_of, rounded_int4
from bita.export.quantization.int4 import BLOCK_SIZE
from bita.export.quantization.int8 import MAX_INT8
from bita.export.quantization.scales import stored_scales
from bita.tensors import Float32Array

FITTED_BLOCKS = 8192  # at a time: 1 MB of float32, so that the search stays in the cache


def nearest_int4(rows: Float32Array) -> Blocks:
    """Rows [N, K] in 4 bits with scale and minimum.

    Weights beyond float16 give scales or minima that are not finite (`check_blocks`).
    """
    blocks = in_blocks(rows)
    flat = blocks.reshape(-1, BLOCK_SIZE)
    values = np.empty(flat.shape, np.uint8)
    scales, minima = np.empty(len(flat), np.float16), np.empty(len(flat), np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(flat), FITTED_BLOCKS):
            part = slice(start, start + FITTED_BLOCKS)
            values[part], scales[part], minima[part] = _nearest_int4(flat[part])
    whole = values.reshape(blocks.shape)
    clear_behind(whole, rows.shape[1])
    shape = blocks.shape[:2]
    return Blocks(whole, scales.reshape(shape), minima.reshape(shape), 4)


def nearest_int8(rows: Float32Array) -> Blocks:
    """Rows [N, K] in 8 bits, symmetric: the largest weight of a block becomes 127 or -127.

    Weights beyond float16 times 127 give scales that are not finite (`check_blocks`).
    """
    blocks = in_blocks(rows)
    most = np.float32(MAX_INT8)
    scales = stored_scales(np.abs(blocks).max(-1) / most, np.float16)
    with np.errstate(invalid="ignore"):
        values = np.rint(blocks * inverse_of(scales)[..., None])
        np.clip(values, -most, most, out=values)
        whole = values.astype(np.int8)
        clear_behind(whole, rows.shape[1])
        return Blocks(whole, scales.astype(np.float16), None, 8)


def _nearest_int4(blocks: Float32Array) -> tuple[np.ndarray, Float32Array, Float32Array]:
    """Values, scales and minima of blocks [M, 32]."""
    columns = np.ascontiguousarray(blocks.T)
    scales, minima = fitted_grid(columns, np.ones(len(columns), np.float32))
    columns -= minima
    columns *= inverse_of(scales)
    return rounded_int4(columns).T.astype(np.uint8), scales, minima
