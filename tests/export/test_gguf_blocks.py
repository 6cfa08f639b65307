"""Tests of blocks of GGUF files: read exactly, rounded as closely as possible, or refused."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from quantized_weights import MLP, QKV, k_quant_bytes, relative_error, write_quantized
from tiny_gguf import HEAD_DIM, HEADS, LAYERS, base_metadata, llama_tensors, write_gguf
from tiny_models import ArrayCheckpoint

from bita.errors import ModelError
from bita.export.block_source import BlockType, block_type, blocks_errors, stored_blocks
from bita.export.gguf.blocks import BLOCK_FORMATS
from bita.export.gguf.checkpoint import GgufCheckpoint
from bita.export.gguf.file import READABLE_TYPES, GgufTensor, read_gguf
from bita.export.quantization.blocks import dequantized
from bita.tensors import EMBEDDINGS

RNG = np.random.default_rng(0)
EXACT = [name for name, known in BLOCK_FORMATS.items() if not known.type.rounded]


def from_gguf(path: Path, data: np.ndarray, kind: Kind, columns: int) -> GgufTensor:
    """Write a file with these bytes as a tensor, and return the tensor."""
    metadata = base_metadata("llama") | {"llama.embedding_length": columns}
    tensors = {"token_embd.weight": (data, kind)}
    return read_gguf(write_gguf(path, "llama", metadata, {}, tensors)).tensors["token_embd.weight"]


@pytest.mark.parametrize("name", EXACT)
def test_exact_blocks_equal_the_weights_bit_for_bit(tmp_path: Path, name: str) -> None:
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
def test_blocks_of_random_bytes_equal_the_weights(tmp_path: Path, name: str) -> None:
    _, block_bytes = gguf.GGML_QUANT_SIZES[Kind[name]]
    data = RNG.integers(0, 256, (40, 3 * block_bytes), dtype=np.uint8)
    tensor = from_gguf(tmp_path / "m.gguf", data, Kind[name], 96)
    blocks = tensor.read_blocks(0, 40)
    assert blocks is not None
    np.testing.assert_array_equal(dequantized(blocks), tensor.read(0, 40))


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K"])
def test_k_quants_only_round_their_scales(tmp_path: Path, name: str) -> None:
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


def test_types_without_blocks_return_none(tmp_path: Path) -> None:
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
def test_damaged_scales_give_the_same_error_as_weights(
    tmp_path: Path, name: str, damage: float
) -> None:
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


def test_products_of_scales_beyond_float16_are_refused(tmp_path: Path) -> None:
    data = k_quant_bytes(Kind.Q4_K, 4, 512)
    data[3, :2] = np.array([60000.0], np.float16).view(np.uint8)
    metadata = base_metadata("llama") | {"llama.embedding_length": 512}
    path = tmp_path / "m.gguf"
    write_gguf(path, "llama", metadata, {}, {"token_embd.weight": (data, Kind.Q4_K)})
    checkpoint = GgufCheckpoint(path)
    assert np.isfinite(checkpoint.read(EMBEDDINGS)).all()
    with pytest.raises(ModelError, match=r"row 3 of .*\(token_embd.weight\) cannot be quantized"):
        checkpoint.read_blocks(EMBEDDINGS, 2)


def test_errors_of_blocks_are_reported_by_format(tmp_path: Path) -> None:
    exact = write_quantized(tmp_path / "m.gguf", {"attn": Kind.Q4_1, "ffn": Kind.Q8_0})
    assert blocks_errors(exact, [*QKV, *MLP, EMBEDDINGS]) == {"Q4_1": 0.0, "Q8_0": 0.0}
    metadata = base_metadata("llama") | {"llama.embedding_length": 512}
    data = k_quant_bytes(Kind.Q6_K, 300, 512), Kind.Q6_K
    path = write_gguf(tmp_path / "k.gguf", "llama", metadata, {}, {"token_embd.weight": data})
    (error,) = blocks_errors(GgufCheckpoint(path), [EMBEDDINGS]).values()
    assert 0.001 < error < 0.01


@pytest.mark.model
def test_the_default_model_keeps_its_blocks() -> None:
    from bita.export.sources import open_checkpoint

    checkpoint = open_checkpoint("smollm2-135m-instruct")
    assert isinstance(checkpoint, GgufCheckpoint)
    for name in (QKV[0], MLP[2], EMBEDDINGS):
        assert_reads_blocks(checkpoint, name, 100, 500)
    names = [name for name in checkpoint.names() if name.endswith("_proj.weight")]
    assert blocks_errors(checkpoint, [*names, EMBEDDINGS]) == {"Q4_1": 0.0, "Q8_0": 0.0}
