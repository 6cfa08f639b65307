"""GGUF files are read with the weights and config that llama.cpp's converter started from."""

import random
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from tiny_gguf import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    LAYERS,
    base_metadata,
    converted,
    gemma_tensors,
    llama_tensors,
    write_gguf,
    write_model,
)

from bita.errors import ModelError
from bita.export.gguf.checkpoint import GgufCheckpoint
from bita.export.gguf.file import READABLE_TYPES, read_gguf
from bita.tensors import row_chunks

Q_NAME = "model.layers.1.self_attn.q_proj.weight"
K_QUANTS = (Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "granite", "smollm3"])
def test_weights_are_read_under_their_original_names(tmp_path: Path, architecture: str) -> None:
    tensors = llama_tensors(tied=False)
    checkpoint = GgufCheckpoint(write_model(tmp_path / "m.gguf", architecture, tensors))
    assert checkpoint.names() == set(tensors)
    for name, expected in tensors.items():
        assert checkpoint.shape(name) == expected.shape
        np.testing.assert_array_equal(checkpoint.read(name), expected)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_the_offset_of_gemma_norms_is_subtracted(tmp_path: Path, architecture: str) -> None:
    tensors = gemma_tensors(architecture)
    checkpoint = GgufCheckpoint(
        write_model(tmp_path / "m.gguf", architecture, tensors, attention__sliding_window=32)
    )
    assert checkpoint.names() == set(tensors)
    for name, expected in tensors.items():
        np.testing.assert_allclose(checkpoint.read(name), expected, atol=1e-6, err_msg=name)


def test_row_ranges_of_permuted_heads_equal_the_whole_tensor(tmp_path: Path) -> None:
    tensors = llama_tensors()
    checkpoint = GgufCheckpoint(write_model(tmp_path / "m.gguf", "llama", tensors))
    for start in range(0, HEADS * HEAD_DIM, 5):
        for stop in range(start, HEADS * HEAD_DIM + 1, 3):
            part = checkpoint.read(Q_NAME, start, stop)
            np.testing.assert_array_equal(part, tensors[Q_NAME][start:stop])
    chunks = list(row_chunks(checkpoint, Q_NAME, chunk_bytes=4 * HIDDEN * 7))
    assert len(chunks) > 5
    np.testing.assert_array_equal(np.concatenate(chunks), tensors[Q_NAME])


def test_biases_of_permuted_heads_are_restored(tmp_path: Path) -> None:
    name = Q_NAME.replace("weight", "bias")
    bias = np.arange(HEADS * HEAD_DIM, dtype=np.float32)
    first = name.replace("layers.1", "layers.0")
    path = write_model(tmp_path / "m.gguf", "llama", llama_tensors() | {name: bias, first: bias})
    checkpoint = GgufCheckpoint(path)
    np.testing.assert_array_equal(checkpoint.read(name), bias)
    np.testing.assert_array_equal(checkpoint.read(name, 5, 40), bias[5:40])
    assert checkpoint.config["attention_bias"] is True


def test_phi3_fused_tensors_are_split(tmp_path: Path) -> None:
    tensors = {n: v for n, v in llama_tensors().items() if "layers" not in n or "norm" in n}
    split = llama_tensors()
    for i in range(LAYERS):
        attention, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        parts = [split[f"{attention}{part}_proj.weight"] for part in "qkv"]
        tensors[f"{attention}qkv_proj.weight"] = np.concatenate(parts)
        gate_up = [split[f"{mlp}{part}_proj.weight"] for part in ("gate", "up")]
        tensors[f"{mlp}gate_up_proj.weight"] = np.concatenate(gate_up)
        for name in (f"{attention}o_proj.weight", f"{mlp}down_proj.weight"):
            tensors[name] = split[name]
    checkpoint = GgufCheckpoint(write_model(tmp_path / "m.gguf", "phi3", tensors))
    assert checkpoint.names() == set(split)
    for name, expected in split.items():
        np.testing.assert_array_equal(checkpoint.read(name, 1, 9), expected[1:9], err_msg=name)


def random_blocks(kind: Kind, rows: int, columns: int) -> np.ndarray:
    """Return random bytes of a K-quant; scales may be NaN, which the comparison allows."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(int(kind))
    return generator.integers(0, 256, (rows, columns // block * block_bytes), dtype=np.uint8)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
@pytest.mark.parametrize("type_name", READABLE_TYPES)
def test_every_quantization_type_is_read_by_rows(tmp_path: Path, type_name: str) -> None:
    kind, columns = Kind[type_name], 512
    if kind in K_QUANTS:
        data = random_blocks(kind, VOCAB_ROWS, columns)
        expected = gguf.quants.dequantize(data, kind)
    else:
        values = np.random.default_rng(1).standard_normal((VOCAB_ROWS, columns), np.float32)
        data = gguf.quants.quantize(values, kind)
        expected = gguf.quants.dequantize(data, kind)
        np.testing.assert_allclose(expected, values, atol=0.6)
    metadata = base_metadata("llama") | {"llama.embedding_length": columns}
    path = write_gguf(
        tmp_path / "m.gguf", "llama", metadata, {}, {"token_embd.weight": (data, kind)}
    )
    assert GgufCheckpoint(path).shape("model.embed_tokens.weight") == (VOCAB_ROWS, columns)
    tensor = read_gguf(path).tensors["token_embd.weight"]
    for start, stop in ((0, VOCAB_ROWS), (0, 1), (7, 12), (VOCAB_ROWS - 1, VOCAB_ROWS), (4, 4)):
        rows = tensor.read(start, stop)
        assert rows.dtype == np.float32
        assert rows.flags.c_contiguous
        np.testing.assert_array_equal(rows, expected[start:stop])


VOCAB_ROWS = 20


def test_the_config_is_derived_from_the_metadata(tmp_path: Path) -> None:
    config = GgufCheckpoint(write_model(tmp_path / "m.gguf")).config
    assert config["model_type"] == "llama"
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (HEADS, KV_HEADS)
    assert (config["hidden_size"], config["intermediate_size"]) == (HIDDEN, INTERMEDIATE)
    assert (config["head_dim"], config["vocab_size"]) == (HEAD_DIM, 40)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 5000.0}
    assert config["rms_norm_eps"] == pytest.approx(1e-5)
    assert config["tie_word_embeddings"] is True
    untied = write_model(tmp_path / "untied.gguf", "llama", llama_tensors(tied=False))
    assert GgufCheckpoint(untied).config["tie_word_embeddings"] is False


def test_the_head_dimension_has_a_default_without_key_length(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", attention__key_length=None)
    assert GgufCheckpoint(path).config["head_dim"] == HIDDEN // HEADS


def test_gemma_layer_types_equal_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for architecture, num_layers in (("gemma2", 7), ("gemma3", 13)):
        path = write_model(
            tmp_path / f"{architecture}.gguf",
            architecture,
            gemma_tensors(architecture),
            attention__sliding_window=32,
            block_count=num_layers,
            attn_logit_softcapping=50.0,
        )
        config = GgufCheckpoint(path).config
        of_transformers = transformers.AutoConfig.for_model(
            config["model_type"], num_hidden_layers=num_layers
        )
        assert config["layer_types"] == of_transformers.layer_types
        assert config["sliding_window"] == 32
        assert config["attn_logit_softcapping"] == 50.0
        assert config["query_pre_attn_scalar"] == HEAD_DIM
        assert config["hidden_activation"] == "gelu_pytorch_tanh"
    assert config["rope_theta"] == 5000.0
    assert config["rope_local_base_freq"] == 10000.0
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 10000.0


@pytest.mark.parametrize(("architecture", "num_layers"), [("gemma2", 46), ("gemma3", 62)])
def test_gemma_27b_scales_queries_by_hidden_size(
    tmp_path: Path, architecture: str, num_layers: int
) -> None:
    tensors = gemma_tensors(architecture)
    path = write_model(
        tmp_path / "m.gguf", architecture, tensors, block_count=num_layers, embedding_length=128
    )
    assert GgufCheckpoint(path).config["query_pre_attn_scalar"] == 128 // HEADS


def test_granite_multipliers_and_smollm3_rope_layers_are_read(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "granite.gguf",
        "granite",
        logit_scale=8.0,
        attention__scale=0.5,
        embedding_scale=12.0,
        residual_scale=0.25,
    )
    config = GgufCheckpoint(path).config
    assert config["attention_multiplier"] == 0.5
    assert config["embedding_multiplier"] == 12.0
    assert config["residual_multiplier"] == 0.25
    assert config["logits_scaling"] == 8.0
    path = write_model(tmp_path / "smollm3.gguf", "smollm3", block_count=9)
    assert GgufCheckpoint(path).config["no_rope_layers"] == [1, 1, 1, 0, 1, 1, 1, 0, 1]


def test_rope_factors_and_scaling_reach_the_config(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, HEAD_DIM // 2, dtype=np.float32)
    stored = converted("llama", llama_tensors()) | {"rope_freqs.weight": factors}
    path = write_gguf(tmp_path / "llama3.gguf", "llama", base_metadata("llama"), stored)
    assert GgufCheckpoint(path).config["rope_parameters"] == {
        "rope_type": "gguf_factors",
        "rope_theta": 5000.0,
        "factors": factors.tolist(),
    }
    path = write_model(
        tmp_path / "yarn.gguf",
        "qwen3",
        rope__scaling__original_context_length=32,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
    )
    assert GgufCheckpoint(path).config["rope_parameters"] == {
        "rope_type": "yarn",
        "rope_theta": 5000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    factors = factors[:6]  # for 12 rotary dimensions
    long = {"rope_factors_long.weight": factors * 2, "rope_factors_short.weight": factors}
    metadata = base_metadata("phi3") | {
        "phi3.rope.scaling.original_context_length": 64,
        "phi3.rope.scaling.attn_factor": 1.25,
        "phi3.rope.dimension_count": 12,
    }
    embedding = {"token_embd.weight": np.ones((4, HIDDEN), np.float32)}
    path = write_gguf(tmp_path / "phi3.gguf", "phi3", metadata, embedding | long)
    parameters = GgufCheckpoint(path).config["rope_parameters"]
    assert parameters["rope_type"] == "longrope"
    assert parameters["long_factor"] == (factors * 2).tolist()
    assert parameters["short_factor"] == factors.tolist()
    assert parameters["original_max_position_embeddings"] == 64
    assert parameters["attention_factor"] == 1.25
    assert parameters["partial_rotary_factor"] == 0.75


def test_parts_of_a_split_file_form_one_model(tmp_path: Path) -> None:
    tensors = llama_tensors()
    stored = list(converted("llama", tensors).items())
    names = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    write_gguf(names[0], "llama", base_metadata("llama"), dict(stored[:5]))
    with pytest.raises(ModelError, match=r"m-00002-of-00002\.gguf.*missing parts"):
        GgufCheckpoint(names[0])
    write_gguf(names[1], "llama", {"split.no": 1}, dict(stored[5:]))
    for path in names:
        checkpoint = GgufCheckpoint(path)
        assert checkpoint.names() == set(tensors)
        for name, expected in tensors.items():
            np.testing.assert_array_equal(checkpoint.read(name), expected)


def test_unsupported_files_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "bert.gguf", "bert", {}, {})
    with pytest.raises(ModelError, match=r"'bert'; supported: llama, qwen2, .*smollm3"):
        GgufCheckpoint(path)
    codes = (np.zeros((4, 18), np.uint8), Kind.IQ4_NL)
    experts = {"blk.0.ffn_gate_exps.weight": np.ones((2, 32), np.float32)}
    path = write_gguf(
        tmp_path / "moe.gguf",
        "llama",
        base_metadata("llama"),
        experts,
        {"token_embd.weight": codes},
    )
    with pytest.raises(ModelError) as caught:
        GgufCheckpoint(path)
    message = str(caught.value)
    assert "2 faults" in message
    assert "blk.0.ffn_gate_exps.weight" in message
    assert "IQ4_NL" in message
    assert "Q6_K" in message
    path = write_model(tmp_path / "m.gguf", block_count=None, context_length=None, expert_count=8)
    with pytest.raises(ModelError, match=r"(?s)block_count.*context_length.*expert_count = 8"):
        GgufCheckpoint(path)


def test_truncated_and_damaged_files_raise_model_errors(tmp_path: Path) -> None:
    content = write_model(tmp_path / "m.gguf").read_bytes()
    damaged = tmp_path / "damaged.gguf"
    for size in [*range(0, 3000, 61), *range(3000, len(content), len(content) // 40)]:
        damaged.write_bytes(content[:size])
        with pytest.raises(ModelError):
            GgufCheckpoint(damaged)
    damaged.write_bytes(content[:-4096])
    with pytest.raises(ModelError, match=rf"{len(content) - 4096} bytes of \d+; download it again"):
        GgufCheckpoint(damaged)
    generator = random.Random(3)
    for _ in range(300):
        mutable = bytearray(content)
        for _ in range(4):
            mutable[generator.randrange(3000)] = generator.randrange(256)
        damaged.write_bytes(mutable)
        try:
            GgufCheckpoint(damaged)
        except ModelError:
            continue


def test_the_license_comes_from_the_file(tmp_path: Path) -> None:
    stored = converted("llama", llama_tensors())
    metadata = base_metadata("llama") | {"general.license": "apache-2.0"}
    assert GgufCheckpoint(write_model(tmp_path / "none.gguf")).license is None
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, stored)
    assert GgufCheckpoint(path).license == "Apache-2.0"
    assert GgufCheckpoint(path, license="MIT").license == "MIT"


@pytest.mark.model
def test_the_default_model_is_read_the_same_as_by_the_gguf_package() -> None:
    from bita.export.sources import open_checkpoint

    checkpoint = open_checkpoint("smollm2-135m-instruct")
    ours, theirs = read_gguf(checkpoint.path), gguf.GGUFReader(checkpoint.path)
    assert set(ours.tensors) == {tensor.name for tensor in theirs.tensors}
    for key, field in theirs.fields.items():
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            assert list(ours.metadata[key][:200]) == field.contents(slice(0, 200)), key
            assert len(ours.metadata[key]) == len(field.data), key
        elif not key.startswith("GGUF."):
            assert ours.metadata[key] == field.contents(), key
    by_name = {tensor.name: tensor for tensor in theirs.tensors}
    tensor = by_name["blk.3.ffn_up.weight"]
    expected = gguf.quants.dequantize(tensor.data[100:140], tensor.tensor_type)
    rows = checkpoint.read("model.layers.3.mlp.up_proj.weight", 100, 140)
    np.testing.assert_array_equal(rows, expected)
