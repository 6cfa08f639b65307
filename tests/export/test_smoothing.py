"""Tests of static scales of 8-bit activations, and of TensorRT's grid of 4-bit weights."""

import numpy as np
import pytest

from bita.export.dialects.standard_linear import GRID
from bita.export.quantization.int4 import dequantize_int4, quantize_int4
from bita.export.quantization.smoothing import smoothing


def test_factors_equal_a_computation_by_hand() -> None:
    largest = np.array([4.0, 1.0, 0.0, 3.0], np.float32)
    weights = [np.array([[1.0, 4.0, 2.0, 0.0]]), np.array([[-0.5, -2.0, 1.0, 0.0]])]
    found = smoothing(largest, weights, most=127)
    np.testing.assert_array_equal(
        found.factors, [2.0, 0.5, 1.0, 1.0]
    )  # 2/1, 1/2; unused channels keep 1
    assert found.input_scale == pytest.approx(3 / 127, rel=1e-3)
    plain = smoothing(largest, weights, most=448, alpha=0)
    np.testing.assert_array_equal(plain.factors, 1)
    assert plain.input_scale == pytest.approx(4 / 448, rel=1e-3)


def test_smoothing_lowers_the_error_of_large_channels() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 64)).astype(np.float32)
    inputs[:, 7] *= 50
    weights = rng.normal(size=(32, 64)).astype(np.float32)
    errors = []
    for alpha in (0.0, 0.5):
        found = smoothing(np.abs(inputs).max(0), [weights], 127, alpha)
        rounded = np.rint(inputs / found.factors / found.input_scale) * found.input_scale
        errors.append(np.linalg.norm(rounded @ (weights * found.factors).T - inputs @ weights.T))
    assert errors[1] < 0.3 * errors[0]


def test_scales_too_small_for_float16_are_raised() -> None:
    found = smoothing(np.full(4, 1e-6, np.float32), [np.ones((1, 4), np.float32)], 127, 0)
    assert found.input_scale == np.float32(2.0**-14)


def test_positive_scales_cover_extremes_of_either_sign() -> None:
    rows = np.zeros((2, 128), np.float32)
    rows[0, 3], rows[0, 70], rows[1, 5] = 7.0, -8.0, 1e-9
    packed, scales = quantize_int4(rows, GRID)
    assert packed.shape == (2, 2, 32)
    assert np.all(scales > 0)
    np.testing.assert_array_equal(scales[0], 1.0)
    np.testing.assert_allclose(dequantize_int4(packed, scales, 128), rows, atol=1e-8)
