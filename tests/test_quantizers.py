"""Weights rounded for the inputs of a layer, and what that saves."""

import numpy as np
import pytest

from bita.export.gptq import ErrorSpread, quantize_int4_for
from bita.export.quantize import (
    MATMULNBITS,
    Int4Grid,
    dequantize_int4,
    quantize_int4,
    quantize_int8,
)

RNG = np.random.default_rng(0)


def correlated_inputs(width: int, count: int = 2000) -> np.ndarray:
    """Rows [count, width] with a few strong directions, as hidden states have."""
    mixing = RNG.normal(size=(width // 4, width))
    rows = RNG.normal(size=(count, width // 4)) @ mixing + 0.3 * RNG.normal(size=(count, width))
    return rows.astype(np.float32)


def output_error(inputs: np.ndarray, weights: np.ndarray, near: np.ndarray) -> float:
    expected = inputs @ weights.T
    return float(np.linalg.norm(inputs @ near.T - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("width", "grid"), [(64, MATMULNBITS), (100, MATMULNBITS), (128, Int4Grid(64, False))]
)
def test_outputs_keep_better_than_with_the_nearest_weights(width: int, grid: Int4Grid) -> None:
    weights = RNG.normal(size=(48, width)).astype(np.float32)
    inputs, unseen = np.split(correlated_inputs(width, 4000), 2)
    spread = ErrorSpread.of(inputs.T @ inputs, grid)
    packed, scales = quantize_int4_for(weights, spread)
    assert grid.negative_scales or np.all(scales > 0)
    for_inputs = dequantize_int4(packed, scales, width)
    nearest = dequantize_int4(*quantize_int4(weights, grid), width)
    assert output_error(unseen, weights, for_inputs) < 0.6 * output_error(unseen, weights, nearest)
    # which is not because the weights would be nearer
    assert np.linalg.norm(for_inputs - weights) > np.linalg.norm(nearest - weights)


def test_without_correlations_only_the_scales_are_better() -> None:
    weights = RNG.normal(size=(64, 96)).astype(np.float32)
    spread = ErrorSpread.of(np.eye(96, dtype=np.float32))
    for_inputs = dequantize_int4(*quantize_int4_for(weights, spread), 96)
    nearest = dequantize_int4(*quantize_int4(weights), 96)
    assert np.square(for_inputs - weights).sum() < np.square(nearest - weights).sum()


def test_weights_on_the_grid_keep_their_values() -> None:
    weights = dequantize_int4(*quantize_int4(RNG.normal(size=(8, 64)).astype(np.float32)), 64)
    inputs = correlated_inputs(64)
    packed, scales = quantize_int4_for(weights, ErrorSpread.of(inputs.T @ inputs))
    np.testing.assert_allclose(dequantize_int4(packed, scales, 64), weights, atol=1e-6)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    weights = RNG.normal(size=(8, 64)).astype(np.float32)
    inputs = correlated_inputs(64)
    inputs[:, 5:40] = 0
    packed, scales = quantize_int4_for(weights, ErrorSpread.of(inputs.T @ inputs))
    near = dequantize_int4(packed, scales, 64)
    assert output_error(inputs, weights, near) < 0.1
    nothing = ErrorSpread.of(np.zeros((64, 64), np.float32))
    near = dequantize_int4(*quantize_int4_for(weights, nothing), 64)
    assert np.abs(near - weights).max() < 0.5


def test_chunks_of_rows_are_rounded_as_the_whole() -> None:
    weights = RNG.normal(size=(20, 64)).astype(np.float32)
    inputs = correlated_inputs(64)
    spread = ErrorSpread.of(inputs.T @ inputs)
    whole = quantize_int4_for(weights, spread)
    pieces = [quantize_int4_for(piece, spread) for piece in (weights[:7], weights[7:])]
    near = [dequantize_int4(*piece, 64) for piece in pieces]
    np.testing.assert_allclose(np.concatenate(near), dequantize_int4(*whole, 64), atol=1e-5)


@pytest.mark.parametrize("width", [64, 50])
def test_8_bits_are_the_nearest_of_254(width: int) -> None:
    weights = RNG.normal(size=(6, width)).astype(np.float32)
    weights[2, :32] = 0
    values, scales = quantize_int8(weights)
    assert values.shape == (6, 2, 32)
    near = ((values.astype(np.float32) - 128) * scales[..., None]).reshape(6, -1)[:, :width]
    assert np.all(np.abs(near - weights) <= np.repeat(scales, 32, axis=1)[:, :width] / 2 + 1e-7)
    assert values.min() >= 1
