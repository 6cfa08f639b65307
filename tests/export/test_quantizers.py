"""Tests of rounding weights for the inputs of a layer, and of the error that this saves."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from make_tiny_engine import CONFIG
from tiny_models import ArrayCheckpoint

from bita.export.architecture import read_architecture
from bita.export.dialects.int8_linear import Int8Linear
from bita.export.dialects.linear import HEAD_LABEL
from bita.export.onnx.decoder_weights import DecoderWeights
from bita.export.onnx.weight_file import WeightFile
from bita.export.onnx.writer import FLOAT, GraphWriter
from bita.export.quantization.gptq import ErrorSpread, quantize_int4_for
from bita.export.quantization.int4 import MATMULNBITS, Int4Grid, dequantize_int4, quantize_int4
from bita.export.quantization.int8 import quantized
from bita.export.quantization.smoothing import smoothing_factors
from bita.runtime.backends.processor import multiplies_int8_exactly
from bita.tensors import HEAD

RNG = np.random.default_rng(0)


def decoder_weights(graph: GraphWriter, head: np.ndarray) -> DecoderWeights:
    """Return the weights of a decoder that has only an output layer."""
    return DecoderWeights(
        graph, ArrayCheckpoint(CONFIG, {HEAD: head}), read_architecture(CONFIG, 64), FLOAT
    )


def correlated_inputs(width: int, count: int = 2000) -> np.ndarray:
    """Return rows [count, width] with a few strong directions, like hidden states."""
    mixing = RNG.normal(size=(width // 4, width))
    rows = RNG.normal(size=(count, width // 4)) @ mixing + 0.3 * RNG.normal(size=(count, width))
    return rows.astype(np.float32)


def output_error(inputs: np.ndarray, weights: np.ndarray, near: np.ndarray) -> float:
    expected = inputs @ weights.T
    return float(np.linalg.norm(inputs @ near.T - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("width", "grid"), [(64, MATMULNBITS), (100, MATMULNBITS), (128, Int4Grid(64, False))]
)
def test_rounding_for_inputs_has_a_lower_output_error_than_nearest(
    width: int, grid: Int4Grid
) -> None:
    weights = RNG.normal(size=(48, width)).astype(np.float32)
    inputs, unseen = np.split(correlated_inputs(width, 4000), 2)
    spread = ErrorSpread.of(inputs.T @ inputs, grid)
    packed, scales = quantize_int4_for(weights, spread)
    assert grid.negative_scales or np.all(scales > 0)
    for_inputs = dequantize_int4(packed, scales, width)
    nearest = dequantize_int4(*quantize_int4(weights, grid), width)
    assert output_error(unseen, weights, for_inputs) < 0.6 * output_error(unseen, weights, nearest)
    # although the weights themselves are less close
    assert np.linalg.norm(for_inputs - weights) > np.linalg.norm(nearest - weights)


def test_without_correlations_the_error_is_still_lower() -> None:
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


def test_inputs_that_are_always_zero_are_harmless() -> None:
    weights = RNG.normal(size=(8, 64)).astype(np.float32)
    inputs = correlated_inputs(64)
    inputs[:, 5:40] = 0
    packed, scales = quantize_int4_for(weights, ErrorSpread.of(inputs.T @ inputs))
    near = dequantize_int4(packed, scales, 64)
    assert output_error(inputs, weights, near) < 0.1
    nothing = ErrorSpread.of(np.zeros((64, 64), np.float32))
    near = dequantize_int4(*quantize_int4_for(weights, nothing), 64)
    assert np.abs(near - weights).max() < 0.5


def test_chunks_of_rows_are_rounded_like_the_whole() -> None:
    weights = RNG.normal(size=(20, 64)).astype(np.float32)
    inputs = correlated_inputs(64)
    spread = ErrorSpread.of(inputs.T @ inputs)
    whole = quantize_int4_for(weights, spread)
    pieces = [quantize_int4_for(piece, spread) for piece in (weights[:7], weights[7:])]
    near = [dequantize_int4(*piece, 64) for piece in pieces]
    np.testing.assert_allclose(np.concatenate(near), dequantize_int4(*whole, 64), atol=1e-5)


def test_8_bit_values_are_the_nearest() -> None:
    weights = RNG.normal(size=(6, 50)).astype(np.float32)
    weights[2] = 0
    values, scales = quantized([weights[:4], weights[4:]], (6, 50))
    near = (values * scales).T
    assert np.all(np.abs(near - weights) <= scales[:, None] / 2 + 1e-7)
    assert np.abs(values).max() == 127
    assert not values[:, 2].any()


@pytest.mark.parametrize("signed", [True, False])
def test_8_bit_rows_do_not_depend_on_each_other(signed: bool, tmp_path: Path) -> None:
    """Rows have the same bits next to any other rows, as in integers; zero rows stay zero."""
    if signed and not multiplies_int8_exactly():
        pytest.skip("this processor's int8 products overflow")
    weights = RNG.normal(size=(40, 96)).astype(np.float32)
    weights[3] *= 100
    rows = RNG.normal(size=(9, 96)).astype(np.float32)
    rows[4], rows[5], rows[7] = 0, 3.0, rows[7] * 1e4
    with WeightFile(tmp_path / "weights") as file:
        graph = GraphWriter(file, {"": 23})
        hidden = graph.input("hidden", FLOAT, ("Q", 96))
        layer = Int8Linear(graph, decoder_weights(graph, weights), signed)
        product = layer.product(hidden, HEAD_LABEL, [HEAD])
        graph.output("product", product, FLOAT, ("Q", 40))
        graph.save(tmp_path / "model.onnx", "layer")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"hidden": rows})
    for row, expected in zip(rows, found, strict=True):
        np.testing.assert_array_equal(session.run(None, {"hidden": row[None]})[0][0], expected)
    values, scales = quantized([weights], (40, 96))
    row_scales = np.abs(rows).max(1, keepdims=True) * np.float32(1 / 127)
    whole = np.rint(rows / np.where(row_scales == 0, 1, row_scales)) @ values.astype(np.float64)
    np.testing.assert_allclose(found, whole * row_scales * scales, rtol=1e-5, atol=1e-30)
    sizes = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(weights, axis=1)
    assert np.all(np.abs(found - rows @ weights.T) <= 0.01 * sizes)


def test_smoothing_lowers_the_error(tmp_path: Path) -> None:
    weights = RNG.normal(size=(40, 96)).astype(np.float32)
    rows = RNG.normal(size=(50, 96)).astype(np.float32)
    rows[:, [7, 50]] *= 60
    rows[:, 11] = 0
    squares = np.square(rows).sum(0)
    factors = smoothing_factors(squares, [weights[:9], weights[9:]])
    assert np.log(factors).mean() == pytest.approx(0, abs=1e-4)
    assert np.all(np.isfinite(factors))
    errors = []
    for number, chosen in enumerate(({}, {HEAD_LABEL: squares})):
        with WeightFile(tmp_path / f"weights{number}") as file:
            graph = GraphWriter(file, {"": 23})
            hidden = graph.input("hidden", FLOAT, ("Q", 96))
            stored = decoder_weights(graph, weights)
            layer = Int8Linear(graph, stored, multiplies_int8_exactly(), chosen)
            product = layer.product(hidden, HEAD_LABEL, [HEAD])
            graph.output("product", product, FLOAT, ("Q", 40))
            graph.save(tmp_path / f"{number}.onnx", "layer")
        session = ort.InferenceSession(
            tmp_path / f"{number}.onnx", providers=["CPUExecutionProvider"]
        )
        (found,) = session.run(None, {"hidden": rows})
        errors.append(np.linalg.norm(found - rows @ weights.T))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("machine", "flags", "exact"),
    [
        ("x86_64", "fpu avx2 avx512f", False),
        ("AMD64", "fpu avx2 avx_vnni", True),
        ("x86_64", "fpu avx512_vnni", True),
        ("aarch64", "", True),
    ],
)
def test_processors_with_exact_int8_products_are_recognized(
    machine: str, flags: str, exact: bool, tmp_path: Path
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"model name\t: X\nflags\t\t: {flags}\n")
    assert multiplies_int8_exactly(machine, path) == exact
    assert not multiplies_int8_exactly("x86_64", tmp_path / "none")
