"""Tests of rounding weights to blocks: to the nearest values, and by GPTQ."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from quantized_weights import SKEWED, correlated_moments, relative_error, weighted_error

from bita.export.quantization.blocks import check_blocks, dequantized, joined
from bita.export.quantization.fitted_grid import fitted_grid, inverse_of, rounded_int4
from bita.export.quantization.gptq import ErrorSpread, quantize_blocks_for, quantize_int4_for
from bita.export.quantization.int4 import dequantize_int4, quantize_int4
from bita.export.quantization.nearest_blocks import nearest_int4, nearest_int8


@pytest.mark.parametrize("width", [100, 96, 31])
def test_nearest_blocks_beat_min_max_and_symmetric_blocks(width: int) -> None:
    rows = SKEWED[:, :width]
    blocks = nearest_int4(rows)
    error = np.square(dequantized(blocks, width) - rows).sum()
    assert not blocks.values.reshape(40, -1)[:, width:].any()
    symmetric = dequantize_int4(*quantize_int4(rows), width)
    assert error < 0.5 * np.square(symmetric - rows).sum()
    whole = rows[:, : width // 32 * 32].reshape(-1, 32)
    if len(whole):
        data = gguf.quants.quantize(whole, Kind.Q4_1)
        by_range = np.square(gguf.quants.dequantize(data, Kind.Q4_1) - whole).sum()
        near = dequantized(blocks)[:, : width // 32 * 32].reshape(-1, 32)
        assert np.square(near - whole).sum() < 0.9 * by_range


def test_values_are_nearest_for_the_stored_scales() -> None:
    blocks = nearest_int4(SKEWED[:, :96] * np.float32(1e-4))
    assert blocks.minima is not None
    grid = np.arange(16, dtype=np.float32) * blocks.scales[..., None].astype(np.float32)
    grid += blocks.minima[..., None]
    errors = np.abs(grid[:, :, None] - (SKEWED[:, :96] * 1e-4).reshape(40, 3, 32, 1))
    np.testing.assert_array_equal(blocks.values, errors.argmin(-1))
    eight = nearest_int8(SKEWED)
    steps = np.repeat(eight.scales.astype(np.float32), 32, 1)[:, :100]
    assert np.all(np.abs(dequantized(eight, 100) - SKEWED) <= steps * 0.52)
    assert np.abs(eight.values).max() == 127


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1])
def test_weights_on_a_grid_are_kept(kind: Kind) -> None:
    data = gguf.quants.quantize(SKEWED[:, :96], kind)
    weights = gguf.quants.dequantize(data, kind)
    assert relative_error(dequantized(nearest_int4(weights)), weights) < 1e-3
    spread = ErrorSpread.of(correlated_moments(96))
    assert relative_error(dequantized(quantize_blocks_for(weights, spread)), weights) < 1e-3
    eight = gguf.quants.dequantize(gguf.quants.quantize(SKEWED[:, :96], Kind.Q8_0), Kind.Q8_0)
    np.testing.assert_array_equal(dequantized(nearest_int8(eight)), eight)


def test_constant_blocks_and_zeros_are_kept() -> None:
    rows = np.zeros((2, 64), np.float32)
    rows[1] = 0.375
    for blocks in (nearest_int4(rows), nearest_int8(rows)):
        np.testing.assert_allclose(dequantized(blocks), rows, rtol=1e-3)
        assert not blocks.values[0].any()


@pytest.mark.parametrize("size", [2e-7, 1e-6, 1e-5, 1e-4])
def test_small_weights_lose_at_most_a_few_steps(size: float) -> None:
    rows = (SKEWED / np.abs(SKEWED).max() * size).astype(np.float32)
    for blocks in (nearest_int4(rows), nearest_int8(rows)):
        step = np.repeat(blocks.scales.astype(np.float32), 32, 1)[:, :100]
        near = dequantized(blocks, 100)
        assert near.any()
        assert np.all(np.abs(near - rows) <= step * 2.5 + 2.0**-24)


def test_grids_fit_the_important_weights() -> None:
    columns = np.ascontiguousarray(SKEWED[:, :32].T)
    importance = np.where(np.arange(32) % 4, 0.01, 1).astype(np.float32)
    errors = []
    for known in (importance, np.ones(32, np.float32)):
        scales, minima = fitted_grid(columns, known)
        near = rounded_int4((columns - minima) * inverse_of(scales)) * scales + minima
        errors.append(float((importance @ np.square(near - columns)).sum()))
    assert errors[0] < 0.7 * errors[1]


def test_gptq_uses_importance_and_ignores_padding() -> None:
    importance = np.where(np.arange(32) % 4, 0.01, 1).astype(np.float32)
    rows = SKEWED[:, :32]
    blocks = quantize_blocks_for(rows, ErrorSpread.of(np.diag(importance)))
    error = np.square(dequantized(blocks) - rows) @ importance
    nearest = np.square(dequantized(nearest_int4(rows)) - rows) @ importance
    assert error.sum() < 0.8 * nearest.sum()
    rows = SKEWED[:, :34] + np.float32(50)
    blocks = quantize_blocks_for(rows, ErrorSpread.of(np.eye(34, dtype=np.float32)))
    assert np.abs(dequantized(blocks, 34) - rows)[:, 32:].max() < 0.05


@pytest.mark.parametrize("width", [96, 100])
def test_gptq_with_minima_beats_symmetric_gptq_and_the_nearest(width: int) -> None:
    rows, moments = SKEWED[:, :width], correlated_moments(width)
    spread = ErrorSpread.of(moments)
    blocks = quantize_blocks_for(rows, spread)
    check_blocks("rows", blocks)
    assert not blocks.values.reshape(40, -1)[:, width:].any()
    error = weighted_error(dequantized(blocks, width), rows, moments)
    symmetric = dequantize_int4(*quantize_int4_for(rows, spread), width)
    assert error < 0.6 * weighted_error(symmetric, rows, moments)
    nearest = dequantized(nearest_int4(rows), width)
    assert error < 0.4 * weighted_error(nearest, rows, moments)
    pieces = [quantize_blocks_for(piece, spread) for piece in (rows[:7], rows[7:])]
    near = dequantized(joined(pieces), width)
    assert weighted_error(near, rows, moments) < 1.05 * error
