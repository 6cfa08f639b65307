"""Weights in blocks of 32: those of GGUF files, rounded ones, and how they are packed."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import gguf
import numpy as np
import onnx_ir as ir
import pytest
from gguf import GGMLQuantizationType as Kind
from tiny_gguf import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    LAYERS,
    base_metadata,
    converted,
    llama_tensors,
    write_gguf,
)
from tiny_models import ArrayCheckpoint

from bita.errors import ModelError
from bita.export.block_source import BlockType, block_type, blocks_errors, stored_blocks
from bita.export.dialects.native_linear import BlockWeight, NativeWeights
from bita.export.gguf.blocks import BLOCK_FORMATS
from bita.export.gguf.checkpoint import GgufCheckpoint
from bita.export.gguf.file import READABLE_TYPES, GgufTensor, read_gguf
from bita.export.onnx.weight_file import WeightFile
from bita.export.onnx.writer import GraphWriter
from bita.export.quantization.blocks import Blocks, check_blocks, dequantized, joined
from bita.export.quantization.fitted_grid import fitted_grid, inverse_of, rounded_int4
from bita.export.quantization.gptq import (
    ErrorSpread,
    Moments,
    quantize_blocks_for,
    quantize_int4_for,
)
from bita.export.quantization.int4 import dequantize_int4, quantize_int4
from bita.export.quantization.nearest_blocks import nearest_int4, nearest_int8
from bita.export.quantization.tiles import (
    BlockRows,
    Tiles,
    gated_pieces,
    in_pieces,
    packed,
    packed_pieces,
    unpacked,
)
from bita.tensors import CHUNK_BYTES, EMBEDDINGS, HEAD, TensorSource

RNG = np.random.default_rng(0)
EXACT = [name for name, known in BLOCK_FORMATS.items() if not known.type.rounded]
ROUNDED = [name for name, known in BLOCK_FORMATS.items() if known.type.rounded]
QKV = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
MLP = [f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]


def random_blocks(num_rows: int, num_blocks: int, bits: int, has_minima: bool) -> Blocks:
    """Blocks of one of the kinds; 8-bit values with minima are those that 4 or 5 bits give."""
    lowest, end = (0, 16) if bits == 4 else (0, 32) if has_minima else (-128, 128)
    values = RNG.integers(lowest, end, (num_rows, num_blocks, 32))
    scales, minima = RNG.normal(size=(2, num_rows, num_blocks)).astype(np.float16)
    dtype = np.uint8 if bits == 4 else np.int8
    return Blocks(values.astype(dtype), scales, minima if has_minima else None, bits)


def assert_same(found: Blocks, expected: Blocks) -> None:
    assert found.bits == expected.bits
    assert found.values.dtype == expected.values.dtype
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.scales, expected.scales)
    assert (found.minima is None) == (expected.minima is None)
    if found.minima is not None and expected.minima is not None:
        np.testing.assert_array_equal(found.minima, expected.minima)


def relative_error(near: np.ndarray, weights: np.ndarray) -> float:
    return float(np.linalg.norm(near - weights) / np.linalg.norm(weights))


def from_gguf(path: Path, data: np.ndarray, kind: Kind, columns: int) -> GgufTensor:
    """A tensor of bytes, as a file has it."""
    metadata = base_metadata("llama") | {"llama.embedding_length": columns}
    tensors = {"token_embd.weight": (data, kind)}
    return read_gguf(write_gguf(path, "llama", metadata, {}, tensors)).tensors["token_embd.weight"]


def write_quantized(
    path: Path,
    kinds: Mapping[str, Kind],
    architecture: str = "llama",
    tensors: dict[str, np.ndarray] | None = None,
) -> GgufCheckpoint:
    """A tiny model with the matrices whose file names contain a key of `kinds` quantized."""
    stored = converted(architecture, tensors or llama_tensors())
    of_name = {
        name: kind
        for name in stored
        for part, kind in kinds.items()
        if part in name and "norm" not in name
    }
    floats = {name: value for name, value in stored.items() if name not in of_name}
    quantized = {
        name: (gguf.quants.quantize(stored[name], kind), kind) for name, kind in of_name.items()
    }
    write_gguf(path, architecture, base_metadata(architecture), floats, quantized)
    return GgufCheckpoint(path)


def k_quant_bytes(kind: Kind, rows: int, columns: int) -> np.ndarray:
    """Random bytes of a K-quant whose float16 factors are between 0.01 and 0.02."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    places = {Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q6_K: (208,)}.get(kind, (0, 2))
    data = RNG.integers(0, 256, (rows, columns // block, block_bytes), dtype=np.uint8)
    for place in places:
        factors = RNG.uniform(0.01, 0.02, (*data.shape[:2], 1)).astype(np.float16)
        data[..., place : place + 2] = factors.view(np.uint8)
    return data.reshape(rows, -1)


class Written:
    """Initializers of NativeWeights; all are written before the first is read."""

    def __init__(self, file: WeightFile, weights: NativeWeights, pieces: list[int]) -> None:
        self._file = file
        self.weights = weights
        self.pieces = pieces  # bytes of each

    def blocks(self, weight: BlockWeight, num_rows: int) -> Blocks:
        self._file.__exit__(None, None, None)
        minima = None if weight.minima is None else _array(weight.minima)
        tiles = Tiles(_array(weight.values), _array(weight.scales), minima)
        return unpacked(tiles, num_rows)


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


class Writing(Protocol):
    """What the fixture gives: NativeWeights of a source, in a file of their own."""

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


KINDS = [(4, False), (4, True), (8, False), (8, True)]


@pytest.mark.parametrize(("bits", "has_minima"), KINDS)
@pytest.mark.parametrize(("num_rows", "num_blocks"), [(1, 1), (15, 2), (16, 3), (17, 1), (50, 5)])
def test_every_byte_is_where_the_layout_says(
    num_rows: int, num_blocks: int, bits: int, has_minima: bool
) -> None:
    blocks = random_blocks(num_rows, num_blocks, bits, has_minima)
    tiles = packed(blocks)
    num_tiles = -(-num_rows // 16)
    assert tiles.values.shape == (num_tiles, num_blocks, 64 * bits)
    for row in range(16 * num_tiles):
        tile, output = divmod(row, 16)
        for block in range(num_blocks):
            is_there = row < num_rows
            scale = blocks.scales[row, block] if is_there else 0
            assert tiles.scales[tile, block, output] == scale
            if tiles.minima is not None and blocks.minima is not None:
                minimum = blocks.minima[row, block] if is_there else 0
                assert tiles.minima[tile, block, output] == minimum
            for place in range(32):
                value = blocks.values[row, block, place] if is_there else 0
                assert _value_at(tiles.values[tile, block], bits, output, place) == value
    assert_same(unpacked(tiles, num_rows), blocks)


def _value_at(block: np.ndarray, bits: int, output: int, place: int) -> int:
    """The value of an input of a block, as the contract of the layout words it."""
    if bits == 8:
        line, j = divmod(place, 4)
        return int(block.view(np.int8)[64 * line + 4 * output + j])
    line, rest = divmod(place, 8)
    byte = int(block[64 * line + 4 * output + rest % 4])
    return byte >> 4 if rest >= 4 else byte & 15


def reader(blocks: Blocks) -> BlockRows:
    return lambda start, stop: blocks.rows(slice(start, stop))


@pytest.mark.parametrize("sizes", [(50,), (1, 1, 48), (16, 16), (7, 30, 13), (33, 3)])
def test_rows_come_in_pieces_of_any_size(sizes: tuple[int, ...]) -> None:
    pieces = [random_blocks(size, 2, 4, True) for size in sizes]
    whole = packed(joined(pieces))
    found = list(packed_pieces(pieces))
    for side in ("values", "scales", "minima"):
        parts = [getattr(tiles, side) for tiles in found]
        np.testing.assert_array_equal(np.concatenate(parts), getattr(whole, side))


@pytest.mark.parametrize("num_rows", [1, 31, 32, 50, 96, 100])
@pytest.mark.parametrize("step", [1, 32, 40, 1000])
def test_gated_rows_alternate_in_groups_of_32(num_rows: int, step: int) -> None:
    gate, up = (random_blocks(num_rows, 1, 8, False) for _ in range(2))
    pieces = list(gated_pieces(reader(gate), reader(up), num_rows, step))
    assert max(map(len, pieces)) <= 2 * max(32, -(-step // 32) * 32)
    whole = joined(pieces)
    num_groups = -(-num_rows // 32)
    assert len(whole) == 64 * num_groups
    for row in range(32 * num_groups):
        group, place = divmod(row, 32)
        for side, blocks in enumerate((gate, up)):
            found = whole.rows(slice(64 * group + 32 * side + place, None)).rows(slice(1))
            expected = blocks.rows(slice(row, row + 1)).padded(1)
            assert_same(found, expected)


def test_plain_pieces_are_the_rows_in_order() -> None:
    blocks = random_blocks(50, 1, 4, False)
    pieces = list(in_pieces(reader(blocks), 50, 16))
    assert [len(piece) for piece in pieces] == [16, 16, 16, 2]
    assert_same(joined(pieces), blocks)


@pytest.mark.parametrize(("bits", "has_minima"), KINDS)
@pytest.mark.parametrize(("more_bits", "with_minima"), KINDS)
def test_other_kinds_of_blocks_hold_the_same_weights(
    bits: int, has_minima: bool, more_bits: int, with_minima: bool
) -> None:
    blocks = random_blocks(5, 3, bits, has_minima)
    if more_bits < bits or (has_minima and not with_minima):
        with pytest.raises(ValueError, match="do not become"):
            blocks.converted(more_bits, with_minima)
        return
    found = blocks.converted(more_bits, with_minima)
    assert (found.bits, found.minima is not None) == (more_bits, with_minima)
    assert found.values.dtype == (np.uint8 if more_bits == 4 else np.int8)
    np.testing.assert_array_equal(dequantized(found), dequantized(blocks))


def test_a_minimum_that_float16_cannot_hold_is_named() -> None:
    scales = np.array([[1.0], [9000.0]], np.float16)
    blocks = Blocks(np.zeros((2, 1, 32), np.uint8), scales, None, 4)
    check_blocks("table", blocks)
    with pytest.raises(ModelError, match=r"row 8 of table cannot be quantized: .* in float16"):
        check_blocks("table", blocks.converted(4, True), 7)


@pytest.mark.parametrize("name", EXACT)
def test_blocks_of_a_file_are_its_weights_bit_for_bit(tmp_path: Path, name: str) -> None:
    weights = RNG.normal(size=(20, 96)).astype(np.float32)
    weights[3, 32:64] = 0
    data = gguf.quants.quantize(weights, Kind[name])
    tensor = from_gguf(tmp_path / "m.gguf", data, Kind[name], 96)
    for start, stop in ((0, 20), (7, 12), (19, 20), (4, 4)):
        blocks = tensor.read_blocks(start, stop)
        assert blocks is not None
        assert tensor.block_type == BlockType(name, blocks.bits, blocks.minima is not None)
        assert blocks.bits == (4 if name.startswith("Q4") else 8)
        np.testing.assert_array_equal(dequantized(blocks), tensor.read(start, stop))


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
@pytest.mark.parametrize("name", EXACT)
def test_any_bytes_of_a_file_are_its_weights(tmp_path: Path, name: str) -> None:
    _, block_bytes = gguf.GGML_QUANT_SIZES[Kind[name]]
    data = RNG.integers(0, 256, (40, 3 * block_bytes), dtype=np.uint8)
    tensor = from_gguf(tmp_path / "m.gguf", data, Kind[name], 96)
    blocks = tensor.read_blocks(0, 40)
    assert blocks is not None
    np.testing.assert_array_equal(dequantized(blocks), tensor.read(0, 40))


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K"])
def test_k_quants_lose_the_digits_of_their_scales_only(tmp_path: Path, name: str) -> None:
    tensor = from_gguf(tmp_path / "m.gguf", k_quant_bytes(Kind[name], 20, 512), Kind[name], 512)
    blocks = tensor.read_blocks(3, 20)
    assert blocks is not None
    assert blocks.minima is not None
    assert tensor.block_type == BlockType(name, blocks.bits, True, "scales")
    assert blocks.values.max() == (15 if name == "Q4_K" else 31)
    near, weights = dequantized(blocks), tensor.read(3, 20)
    size = np.abs(blocks.scales[..., None] * blocks.values.astype(np.float32))
    size = size + np.abs(blocks.minima[..., None].astype(np.float32))
    assert np.all(np.abs(near - weights) <= size.reshape(near.shape) * 2.0**-11)
    assert relative_error(near, weights) < 1e-3


@pytest.mark.parametrize(
    ("name", "bits", "bound"), [("Q6_K", 8, 0.01), ("Q3_K", 4, 0.09), ("Q2_K", 4, 0.08)]
)
def test_blocks_of_16_become_the_nearest_blocks_of_32(
    tmp_path: Path, name: str, bits: int, bound: float
) -> None:
    tensor = from_gguf(tmp_path / "m.gguf", k_quant_bytes(Kind[name], 20, 512), Kind[name], 512)
    blocks = tensor.read_blocks(0, 20)
    assert blocks is not None
    assert tensor.block_type == BlockType(name, bits, bits == 4, "values")
    assert relative_error(dequantized(blocks), tensor.read(0, 20)) < bound
    empty = tensor.read_blocks(4, 4)
    assert empty is not None
    assert empty.values.shape == (0, 16, 32)


def test_types_without_blocks_have_none(tmp_path: Path) -> None:
    without = set(READABLE_TYPES) - set(BLOCK_FORMATS)
    assert without == {"F32", "F16", "BF16"}
    checkpoint = write_quantized(tmp_path / "m.gguf", {"attn": Kind.Q4_0})
    for name in (MLP[0], "model.norm.weight", EMBEDDINGS):
        assert checkpoint.block_type(name) is None
        assert stored_blocks(checkpoint, name, 0, 1) is None
    arrays = ArrayCheckpoint({}, {EMBEDDINGS: np.ones((4, 32), np.float32)})
    assert block_type(arrays, EMBEDDINGS) is None
    assert stored_blocks(arrays, EMBEDDINGS, 0, 4) is None


def assert_reads_blocks(checkpoint: GgufCheckpoint, name: str, start: int, stop: int) -> None:
    blocks = checkpoint.read_blocks(name, start, stop)
    assert blocks is not None
    weights = checkpoint.read(name, start, stop)
    np.testing.assert_array_equal(dequantized(blocks, weights.shape[1]), weights, err_msg=name)


def test_any_rows_of_permuted_heads_are_read_as_blocks(tmp_path: Path) -> None:
    checkpoint = write_quantized(tmp_path / "m.gguf", {"attn": Kind.Q4_1})
    for start in range(0, HEADS * HEAD_DIM, 5):
        for stop in range(start, HEADS * HEAD_DIM + 1, 9):
            assert_reads_blocks(checkpoint, QKV[0], start, stop)
    for name in QKV[1:]:
        assert_reads_blocks(checkpoint, name, 3, 21)


def test_parts_of_fused_tensors_are_read_as_blocks(tmp_path: Path) -> None:
    tensors = {n: v for n, v in llama_tensors().items() if "layers" not in n or "norm" in n}
    split = llama_tensors()
    for i in range(LAYERS):
        attention, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        parts = [split[f"{attention}{part}_proj.weight"] for part in "qkv"]
        tensors[f"{attention}qkv_proj.weight"] = np.concatenate(parts)
        parts = [split[f"{mlp}{part}_proj.weight"] for part in ("gate", "up")]
        tensors[f"{mlp}gate_up_proj.weight"] = np.concatenate(parts)
        for name in (f"{attention}o_proj.weight", f"{mlp}down_proj.weight"):
            tensors[name] = split[name]
    checkpoint = write_quantized(tmp_path / "m.gguf", {"blk": Kind.Q5_1}, "phi3", tensors)
    for name in (*QKV, *MLP):
        assert checkpoint.block_type(name) == BlockType("Q5_1", 8, True)
        assert_reads_blocks(checkpoint, name, 1, 20)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize("damage", [np.inf, -np.inf, np.nan])
def test_damaged_scales_are_named_as_weights_are(tmp_path: Path, name: str, damage: float) -> None:
    kind, columns = Kind[name], 512
    data = k_quant_bytes(kind, 4, columns)
    place = {Kind.Q2_K: 80, Kind.Q3_K: 108, Kind.Q6_K: 208}.get(kind, 0)
    if not name.endswith("K"):
        data = gguf.quants.quantize(np.ones((4, columns), np.float32), kind)
    data[2, place : place + 2] = np.array([damage], np.float16).view(np.uint8)
    metadata = base_metadata("llama") | {"llama.embedding_length": columns}
    path = tmp_path / "m.gguf"
    write_gguf(path, "llama", metadata, {}, {"token_embd.weight": (data, kind)})
    checkpoint = GgufCheckpoint(path)
    with pytest.raises(ModelError, match=r"\(token_embd.weight\) is \S+ at row 2, column") as read:
        checkpoint.read(EMBEDDINGS, 1)
    with pytest.raises(ModelError) as caught:
        checkpoint.read_blocks(EMBEDDINGS, 1)
    assert str(caught.value) == str(read.value)
    assert checkpoint.read_blocks(EMBEDDINGS, 0, 2) is not None


def test_products_of_scales_beyond_float16_are_named(tmp_path: Path) -> None:
    data = k_quant_bytes(Kind.Q4_K, 4, 512)
    data[3, :2] = np.array([60000.0], np.float16).view(np.uint8)
    metadata = base_metadata("llama") | {"llama.embedding_length": 512}
    path = tmp_path / "m.gguf"
    write_gguf(path, "llama", metadata, {}, {"token_embd.weight": (data, Kind.Q4_K)})
    checkpoint = GgufCheckpoint(path)
    assert np.isfinite(checkpoint.read(EMBEDDINGS)).all()
    with pytest.raises(ModelError, match=r"row 3 of .*\(token_embd.weight\) cannot be quantized"):
        checkpoint.read_blocks(EMBEDDINGS, 2)


def test_errors_of_blocks_by_the_formats_of_a_file(tmp_path: Path) -> None:
    exact = write_quantized(tmp_path / "m.gguf", {"attn": Kind.Q4_1, "ffn": Kind.Q8_0})
    assert blocks_errors(exact, [*QKV, *MLP, EMBEDDINGS]) == {"Q4_1": 0.0, "Q8_0": 0.0}
    metadata = base_metadata("llama") | {"llama.embedding_length": 512}
    data = k_quant_bytes(Kind.Q6_K, 300, 512), Kind.Q6_K
    path = write_gguf(tmp_path / "k.gguf", "llama", metadata, {}, {"token_embd.weight": data})
    (error,) = blocks_errors(GgufCheckpoint(path), [EMBEDDINGS]).values()
    assert 0.001 < error < 0.01


SKEWED = RNG.exponential(size=(40, 100)).astype(np.float32) - np.float32(0.5)


@pytest.mark.parametrize("width", [100, 96, 31])
def test_nearest_blocks_beat_the_range_and_symmetric_ones(width: int) -> None:
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


def test_nearest_values_are_nearest_for_the_scales_as_stored() -> None:
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
def test_weights_on_a_grid_come_back(kind: Kind) -> None:
    data = gguf.quants.quantize(SKEWED[:, :96], kind)
    weights = gguf.quants.dequantize(data, kind)
    assert relative_error(dequantized(nearest_int4(weights)), weights) < 1e-3
    spread = ErrorSpread.of(correlated_moments(96))
    assert relative_error(dequantized(quantize_blocks_for(weights, spread)), weights) < 1e-3
    eight = gguf.quants.dequantize(gguf.quants.quantize(SKEWED[:, :96], Kind.Q8_0), Kind.Q8_0)
    np.testing.assert_array_equal(dequantized(nearest_int8(eight)), eight)


def test_even_blocks_of_one_number_and_of_zeros_stay() -> None:
    rows = np.zeros((2, 64), np.float32)
    rows[1] = 0.375
    for blocks in (nearest_int4(rows), nearest_int8(rows)):
        np.testing.assert_allclose(dequantized(blocks), rows, rtol=1e-3)
        assert not blocks.values[0].any()


@pytest.mark.parametrize("size", [2e-7, 1e-6, 1e-5, 1e-4])
def test_small_weights_lose_a_step_of_float16_at_most(size: float) -> None:
    rows = (SKEWED / np.abs(SKEWED).max() * size).astype(np.float32)
    for blocks in (nearest_int4(rows), nearest_int8(rows)):
        step = np.repeat(blocks.scales.astype(np.float32), 32, 1)[:, :100]
        near = dequantized(blocks, 100)
        assert near.any()
        assert np.all(np.abs(near - rows) <= step * 2.5 + 2.0**-24)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_beyond_float16_are_named(written: Writing, bits: int) -> None:
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
def test_weights_of_which_nothing_is_left_are_refused(written: Writing, bits: int) -> None:
    weights = (SKEWED[:, :64] * 1e-10).astype(np.float32)
    source = ArrayCheckpoint({}, {HEAD: weights, EMBEDDINGS: np.zeros((4, 64), np.float32)})
    with pytest.raises(ModelError, match=r"of lm_head.weight are so small that all are 0"):
        written(source).weights.weight("lm_head", [HEAD], bits)
    file = written(source)
    zeros = file.blocks(file.weights.weight("zeros", [EMBEDDINGS], bits), 4)
    assert not dequantized(zeros).any()


def correlated_moments(width: int) -> np.ndarray:
    mixing = RNG.normal(size=(width // 4 + 1, width))
    rows = RNG.normal(size=(2000, len(mixing))) @ mixing + 0.3 * RNG.normal(size=(2000, width))
    moments: np.ndarray = (rows.T @ rows).astype(np.float32)
    return moments


def weighted_error(near: np.ndarray, weights: np.ndarray, moments: np.ndarray) -> float:
    error = (near - weights).astype(np.float64)
    return float(np.einsum("nk,kl,nl->", error, moments, error))


def test_grids_fit_the_weights_that_count() -> None:
    columns = np.ascontiguousarray(SKEWED[:, :32].T)
    importance = np.where(np.arange(32) % 4, 0.01, 1).astype(np.float32)
    errors = []
    for known in (importance, np.ones(32, np.float32)):
        scales, minima = fitted_grid(columns, known)
        near = rounded_int4((columns - minima) * inverse_of(scales)) * scales + minima
        errors.append(float((importance @ np.square(near - columns)).sum()))
    assert errors[0] < 0.7 * errors[1]


def test_gptq_uses_importance_and_no_column_that_is_not_there() -> None:
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


def test_a_file_in_4_bits_keeps_its_blocks(tmp_path: Path, written: Writing) -> None:
    kinds = {"attn": Kind.Q4_1, "ffn_gate": Kind.Q4_0, "ffn_up": Kind.Q4_0, "ffn_down": Kind.Q8_0}
    checkpoint = write_quantized(tmp_path / "m.gguf", {**kinds, "token_embd": Kind.Q8_0})
    of_no_use = {label: np.full((64, 64), np.nan, np.float32) for label in ("qkv", "mixed")}
    file = written(checkpoint, moments=of_no_use)
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


def test_gate_and_up_are_in_the_order_of_the_operator(tmp_path: Path, written: Writing) -> None:
    checkpoint = write_quantized(tmp_path / "m.gguf", {"ffn": Kind.Q4_0})
    file = written(checkpoint)
    weight = file.weights.gated_weight("mlp", MLP[0], MLP[1])
    groups = dequantized(file.blocks(weight, 192)).reshape(3, 2, 32, HIDDEN)
    for side, name in enumerate(MLP[:2]):
        np.testing.assert_array_equal(groups[:, side].reshape(96, HIDDEN), checkpoint.read(name))


def test_a_file_in_8_bits_is_rounded_to_4(tmp_path: Path, written: Writing) -> None:
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


def test_int8_holds_all_blocks_of_a_file(tmp_path: Path, written: Writing) -> None:
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


def test_blocks_fitted_to_4_bits_are_fitted_again_to_8(tmp_path: Path, written: Writing) -> None:
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


class CountedReads(ArrayCheckpoint):
    """Knows the most numbers that were read at once."""

    most = 0

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        rows = super().read(name, start, stop)
        self.most = max(self.most, rows.size)
        return rows


def test_weights_are_read_and_written_in_pieces(written: Writing) -> None:
    weights = RNG.normal(size=(6000, 1024)).astype(np.float32)
    source = CountedReads({}, {MLP[0]: weights, MLP[1]: weights[::-1].copy()})
    file = written(source, "int8")
    file.weights.weight("both", MLP[:2])
    file.weights.gated_weight("gated", MLP[0], MLP[1])
    assert 4 * source.most <= CHUNK_BYTES
    assert len(file.pieces) > 5
    assert max(file.pieces) <= CHUNK_BYTES
    assert sum(file.pieces) > 24_000 * 1024


@pytest.mark.model
def test_the_default_model_keeps_its_blocks() -> None:
    from bita.export.sources import open_checkpoint

    checkpoint = open_checkpoint("smollm2-135m-instruct")
    assert isinstance(checkpoint, GgufCheckpoint)
    for name in (QKV[0], MLP[2], EMBEDDINGS):
        assert_reads_blocks(checkpoint, name, 100, 500)
    names = [name for name in checkpoint.names() if name.endswith("_proj.weight")]
    assert blocks_errors(checkpoint, [*names, EMBEDDINGS]) == {"Q4_1": 0.0, "Q8_0": 0.0}
