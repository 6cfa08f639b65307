"""Blocks for native operators are copied from a file, or rounded from its weights."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir
import pytest
from gguf import GGMLQuantizationType as Kind
from quantized_weights import (
    MLP,
    QKV,
    SKEWED,
    correlated_moments,
    k_quant_bytes,
    relative_error,
    weighted_error,
    write_quantized,
)
from tiny_gguf import HIDDEN, base_metadata, llama_tensors, write_gguf
from tiny_models import ArrayCheckpoint

from bita.errors import ModelError
from bita.export.dialects.native_linear import BlockWeight, NativeWeights
from bita.export.gguf.checkpoint import GgufCheckpoint
from bita.export.onnx.weight_file import WeightFile
from bita.export.onnx.writer import GraphWriter
from bita.export.quantization.blocks import Blocks, dequantized
from bita.export.quantization.gptq import Moments
from bita.export.quantization.tiles import Tiles, unpacked
from bita.tensors import CHUNK_BYTES, EMBEDDINGS, HEAD, TensorSource

RNG = np.random.default_rng(0)


class Written:
    """Initializers of NativeWeights; all of them are written before the first one is read."""

    def __init__(self, file: WeightFile, weights: NativeWeights, pieces: list[int]) -> None:
        self._file = file
        self.weights = weights
        self.pieces = pieces  # size of each piece in bytes

    def blocks(self, weight: BlockWeight, num_rows: int) -> Blocks:
        self._file.__exit__(None, None, None)
        minima = None if weight.minima is None else _array(weight.minima)
        tiles = Tiles(_array(weight.values), _array(weight.scales), minima)
        return unpacked(tiles, num_rows)


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


class Writing(Protocol):
    """The type of the fixture: a function that writes NativeWeights of a source to a new file."""

    def __call__(
        self, source: TensorSource, precision: str = "int4", moments: Moments | None = None
    ) -> Written: ...


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Writing]:
    with ExitStack() as files:

        def write(
            source: TensorSource, precision: str = "int4", moments: Moments | None = None
        ) -> Written:
            pieces: list[int] = []
            path = tmp_path / f"weights{len(list(tmp_path.iterdir()))}"
            file = files.enter_context(WeightFile(path, pieces.append))
            graph = GraphWriter(file, {"": 23})
            return Written(file, NativeWeights(graph, source, precision, moments), pieces)

        yield write


def test_4_bit_blocks_of_a_file_are_kept(tmp_path: Path, written: Writing) -> None:
    kinds = {"attn": Kind.Q4_1, "ffn_gate": Kind.Q4_0, "ffn_up": Kind.Q4_0, "ffn_down": Kind.Q8_0}
    checkpoint = write_quantized(tmp_path / "m.gguf", {**kinds, "token_embd": Kind.Q8_0})
    unused = {label: np.full((64, 64), np.nan, np.float32) for label in ("qkv", "mixed")}
    file = written(checkpoint, moments=unused)
    table = file.weights.table(EMBEDDINGS)
    assert table is file.weights.table(EMBEDDINGS)
    assert (table.bits, table.minima) == (8, None)
    layers = {
        "qkv": (QKV, 4, True),
        "down": ([MLP[2]], 8, False),
        "mixed": ([QKV[0], MLP[0]], 4, True),
        "wide": ([MLP[0], QKV[0], EMBEDDINGS], 8, True),
    }
    weights = {label: file.weights.weight(label, names) for label, (names, *_) in layers.items()}
    for label, (names, bits, has_minima) in layers.items():
        weight = weights[label]
        expected = np.concatenate([checkpoint.read(name) for name in names])
        assert (weight.bits, weight.minima is not None) == (bits, has_minima)
        assert (weight.values.name, weight.scales.name) == (f"{label}.values", f"{label}.scales")
        found = dequantized(file.blocks(weight, len(expected)), expected.shape[1])
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(dequantized(file.blocks(table, 40)), checkpoint.read(EMBEDDINGS))


def test_gate_and_up_have_the_row_order_of_the_operator(tmp_path: Path, written: Writing) -> None:
    checkpoint = write_quantized(tmp_path / "m.gguf", {"ffn": Kind.Q4_0})
    file = written(checkpoint)
    weight = file.weights.gated_weight("mlp", MLP[0], MLP[1])
    groups = dequantized(file.blocks(weight, 192)).reshape(3, 2, 32, HIDDEN)
    for side, name in enumerate(MLP[:2]):
        np.testing.assert_array_equal(groups[:, side].reshape(96, HIDDEN), checkpoint.read(name))


def test_8_bit_blocks_of_a_file_are_rounded_to_4_bits(tmp_path: Path, written: Writing) -> None:
    tensors = llama_tensors(tied=False)
    kinds = {"blk": Kind.Q8_0, "token_embd": Kind.Q4_0, "output.weight": Kind.Q8_0}
    checkpoint = write_quantized(tmp_path / "m.gguf", kinds, tensors=tensors)
    moments = {"qkv": correlated_moments(HIDDEN)}
    near, spread = written(checkpoint), written(checkpoint, moments=moments)
    weights = np.concatenate([checkpoint.read(name) for name in QKV])
    errors = []
    for file in (near, spread):
        weight = file.weights.weight("qkv", QKV)
        head, table = (file.weights.table(name) for name in (HEAD, EMBEDDINGS))
        assert (weight.bits, head.bits, table.bits) == (4, 4, 4)
        assert head.values.name == "lm_head.values"
        found = dequantized(file.blocks(weight, len(weights)))
        errors.append(weighted_error(found, weights, moments["qkv"]))
    assert errors[1] < 0.7 * errors[0]


def test_int8_keeps_all_blocks_of_a_file(tmp_path: Path, written: Writing) -> None:
    kinds = {"attn_q": Kind.Q4_0, "attn_k": Kind.Q5_1, "attn_v": Kind.Q8_0, "token": Kind.Q4_0}
    checkpoint = write_quantized(tmp_path / "m.gguf", kinds)
    file = written(checkpoint, "int8")
    weights = np.concatenate([checkpoint.read(name) for name in QKV])
    weight = file.weights.weight("qkv", QKV)
    assert (weight.bits, weight.minima is not None) == (8, True)
    assert file.weights.table(EMBEDDINGS).bits == 8
    down = file.weights.weight("down", [MLP[2]])
    assert (down.bits, down.minima) == (8, None)
    np.testing.assert_array_equal(dequantized(file.blocks(weight, len(weights))), weights)
    found = dequantized(file.blocks(down, HIDDEN))
    assert relative_error(found, checkpoint.read(MLP[2])) < 0.01


def test_k_quants_are_fitted_to_4_or_8_bits(tmp_path: Path, written: Writing) -> None:
    metadata = base_metadata("llama") | {"llama.embedding_length": 256}
    tensors = {"token_embd.weight": (k_quant_bytes(Kind.Q3_K, 40, 256), Kind.Q3_K)}
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, {}, tensors)
    checkpoint = GgufCheckpoint(path)
    for precision, bound in (("int4", 0.09), ("int8", 0.01)):
        file = written(checkpoint, precision)
        table = file.weights.table(EMBEDDINGS)
        assert table.bits == int(precision[3:])
        found = dequantized(file.blocks(table, 40))
        assert relative_error(found, checkpoint.read(EMBEDDINGS)) < bound


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_beyond_float16_are_refused(written: Writing, bits: int) -> None:
    weights = np.ones((5, 64), np.float32)
    weights[3, 40] = 1e30
    source = ArrayCheckpoint({}, {HEAD: weights})
    message = r"row 3 of lm_head.weight cannot be quantized: its scale is not finite in float16"
    with pytest.raises(ModelError, match=message):
        written(source).weights.weight("lm_head", [HEAD], bits)
    moments = {"lm_head": np.eye(64, dtype=np.float32)}
    with pytest.raises(ModelError, match=message):
        written(source, moments=moments).weights.weight("lm_head", [HEAD], bits)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_that_all_round_to_zero_are_refused(written: Writing, bits: int) -> None:
    weights = (SKEWED[:, :64] * 1e-10).astype(np.float32)
    source = ArrayCheckpoint({}, {HEAD: weights, EMBEDDINGS: np.zeros((4, 64), np.float32)})
    with pytest.raises(ModelError, match=r"of lm_head.weight are so small that all are 0"):
        written(source).weights.weight("lm_head", [HEAD], bits)
    file = written(source)
    zeros = file.blocks(file.weights.weight("zeros", [EMBEDDINGS], bits), 4)
    assert not dequantized(zeros).any()


class CountingCheckpoint(ArrayCheckpoint):
    """A checkpoint that records the largest number of values read at once."""

    most = 0

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        rows = super().read(name, start, stop)
        self.most = max(self.most, rows.size)
        return rows


def test_weights_are_read_and_written_in_pieces(written: Writing) -> None:
    weights = RNG.normal(size=(6000, 1024)).astype(np.float32)
    source = CountingCheckpoint({}, {MLP[0]: weights, MLP[1]: weights[::-1].copy()})
    file = written(source, "int8")
    file.weights.weight("both", MLP[:2])
    file.weights.gated_weight("gated", MLP[0], MLP[1])
    assert 4 * source.most <= CHUNK_BYTES
    assert len(file.pieces) > 5
    assert max(file.pieces) <= CHUNK_BYTES
    assert sum(file.pieces) > 24_000 * 1024
