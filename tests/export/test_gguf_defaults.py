"""Missing GGUF keys get llama.cpp's defaults, and unknown keys are refused by name.

`test_gguf_llama_cpp` compares the same cases with llama.cpp itself.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    LAYERS,
    Array,
    base_metadata,
    converted,
    gemma_tensors,
    llama_tensors,
    write_gguf,
    write_model,
)

from bita.errors import ModelError
from bita.export.architecture import Architecture, read_architecture
from bita.export.gguf.checkpoint import GgufCheckpoint

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "granite", "smollm3")
EMBEDDINGS = np.ones((40, HIDDEN), np.float32)
PLAIN = 5000.0 ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)  # radians per position


def tensors_of(architecture: str) -> dict[str, Array]:
    if architecture == "phi3":
        return {}  # its layers are fused, and no test here reads them
    return gemma_tensors(architecture) if architecture.startswith("gemma") else llama_tensors()


def config_of(path: Path, architecture: str = "llama", **fields: Any) -> dict[str, Any]:
    tensors = tensors_of(architecture) or {"model.embed_tokens.weight": EMBEDDINGS}
    model = write_model(path / "m.gguf", architecture, tensors, **fields)
    return GgufCheckpoint(model).config


def read(path: Path, architecture: str = "llama", **fields: Any) -> Architecture:
    """Read a model whose keys are changed by `fields` (`__` for a dot, None to remove a key)."""
    return read_architecture(config_of(path, architecture, **fields), 64)


def frequencies(path: Path, architecture: str = "llama", **fields: Any) -> tuple[np.ndarray, float]:
    rope = read(path, architecture, **fields).layers[0].rope
    assert rope is not None
    return np.array(rope.inv_freq), rope.amplitude


@pytest.mark.parametrize(
    ("fields", "factor"),
    [
        ({}, 1.0),
        ({"rope__scaling__factor": 4.0}, 4.0),
        ({"rope__scaling__factor": 4.0, "rope__scaling__type": "linear"}, 4.0),
        ({"rope__scale_linear": 4.0}, 4.0),
        ({"rope__scale_linear": 4.0, "rope__scaling__factor": 2.0}, 2.0),
        ({"rope__scale_linear": 4.0, "rope__scaling__type": "none"}, 1.0),
        ({"rope__scaling__factor": 4.0, "rope__scaling__type": "none"}, 1.0),
        ({"rope__scaling__factor": 0.0}, 1.0),
        ({"rope__scaling__factor": 0.5}, 0.5),
        ({"rope__scaling__type": "linear"}, 1.0),
        ({"rope__scaling__type": "yarn"}, 1.0),
        ({"rope__scaling__finetuned": False, "rope__scaling__factor": 4.0}, 4.0),
        ({"rope__scaling__original_context_length": 32, "rope__scaling__factor": 4.0}, 4.0),
        ({"rope__scaling__yarn_ext_factor": -1.0, "rope__scaling__factor": 4.0}, 4.0),
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "smollm3", "gemma2"])
def test_linear_scaling_is_read_in_every_spelling(
    tmp_path: Path, architecture: str, fields: dict[str, Any], factor: float
) -> None:
    found, amplitude = frequencies(tmp_path, architecture, **fields)
    np.testing.assert_allclose(found, PLAIN / factor, rtol=1e-6)
    assert amplitude == 1.0


def test_the_default_rope_base_is_10000(tmp_path: Path) -> None:
    for architecture in ARCHITECTURES:
        if architecture != "gemma3":  # its first layer has another base
            found, _ = frequencies(tmp_path, architecture, rope__freq_base=None)
            np.testing.assert_allclose(found[1], 10_000 ** -(2 / HEAD_DIM), rtol=1e-6)


def test_yarn_without_its_context_length_uses_that_of_the_model(tmp_path: Path) -> None:
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    left_out, amplitude = frequencies(tmp_path, "qwen3", **yarn)
    given, _ = frequencies(tmp_path, "qwen3", rope__scaling__original_context_length=128, **yarn)
    other, _ = frequencies(tmp_path, "qwen3", rope__scaling__original_context_length=32, **yarn)
    np.testing.assert_array_equal(left_out, given)
    assert not np.array_equal(given, other)
    assert amplitude == pytest.approx(0.1 * math.log(4) + 1)
    _, more = frequencies(tmp_path, "qwen3", rope__scaling__attn_factor=1.5, **yarn)
    assert more == pytest.approx(1.5 * amplitude)
    slow, _ = frequencies(tmp_path, "qwen3", rope__scaling__yarn_beta_slow=8.0, **yarn)
    usual, _ = frequencies(tmp_path, "qwen3", rope__scaling__yarn_beta_slow=1.0, **yarn)
    assert not np.array_equal(slow, left_out)
    np.testing.assert_array_equal(usual, left_out)


def test_attn_factor_applies_to_every_type_of_scaling(tmp_path: Path) -> None:
    found, amplitude = frequencies(tmp_path, rope__scaling__attn_factor=1.25)
    np.testing.assert_allclose(found, PLAIN)
    assert amplitude == 1.25


def test_llama3_factors_and_a_linear_factor_are_combined(tmp_path: Path) -> None:
    table = np.linspace(1, 8, HEAD_DIM // 2, dtype=np.float32)
    stored = converted("llama", llama_tensors()) | {"rope_freqs.weight": table}
    metadata = base_metadata("llama") | {"llama.rope.scaling.factor": 2.0}
    config = GgufCheckpoint(write_gguf(tmp_path / "m.gguf", "llama", metadata, stored)).config
    rope = read_architecture(config, 64).layers[0].rope
    assert rope is not None
    np.testing.assert_allclose(rope.inv_freq, PLAIN / table / 2, rtol=1e-6)


def test_longrope_without_attn_factor_is_not_amplified(tmp_path: Path) -> None:
    tables = {
        f"rope_factors_{name}.weight": np.full(HEAD_DIM // 2, value, np.float32)
        for name, value in (("long", 4), ("short", 2))
    }
    metadata = base_metadata("phi3") | {"phi3.rope.scaling.original_context_length": 64}
    path = write_gguf(
        tmp_path / "m.gguf", "phi3", metadata, {"token_embd.weight": EMBEDDINGS, **tables}
    )
    rope = read_architecture(GgufCheckpoint(path).config, 64).layers[0].rope
    assert rope is not None
    assert rope.amplitude == 1.0
    np.testing.assert_allclose(rope.inv_freq, PLAIN / 2, rtol=1e-6)


def windows(architecture: Architecture) -> list[int | None]:
    return [layer.window for layer in architecture.layers]


def test_gemma2_has_defaults_for_missing_keys(tmp_path: Path) -> None:
    found = read(tmp_path, "gemma2", block_count=4)
    assert (found.attention_softcap, found.logit_softcap) == (50.0, 30.0)
    assert windows(found) == [4096, None, 4096, None]
    assert found.attention_scale == HEAD_DIM**-0.5
    caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 0.0}
    other = read(tmp_path, "gemma2", attention__sliding_window=8, **caps)
    assert (other.attention_softcap, other.logit_softcap) == (5.0, 0.0)
    assert windows(other) == [8, None]


def test_gemma3_has_defaults_for_missing_keys(tmp_path: Path) -> None:
    found = read(tmp_path, "gemma3", block_count=7)
    assert windows(found) == [None] * 7
    assert (found.attention_softcap, found.logit_softcap) == (0.0, 0.0)
    assert len({layer.rope for layer in found.layers}) == 1
    windowed = read(tmp_path, "gemma3", block_count=7, attention__sliding_window=8)
    assert windows(windowed) == [8] * 5 + [None, 8]
    local = windowed.layers[0].rope
    assert local is not None
    np.testing.assert_allclose(local.inv_freq[1], 10_000 ** -(2 / HEAD_DIM))
    other = read(tmp_path, "gemma3", attention__sliding_window=8, rope__freq_base_swa=300.0)
    assert other.layers[0].rope is not None
    np.testing.assert_allclose(other.layers[0].rope.inv_freq[1], 300 ** -(2 / HEAD_DIM))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (3, [8, 8, None, 8, 8]),
        (1, [None] * 5),
        (0, [8] * 5),
        ([True, False, False, True, True], [8, None, None, 8, 8]),
        ([1, 1, 0, 0, 1], [8, 8, None, None, 8]),
    ],
)
@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_patterns_of_windows_are_read(
    tmp_path: Path, architecture: str, pattern: Any, expected: list[int | None]
) -> None:
    fields = {"attention__sliding_window": 8, "attention__sliding_window_pattern": pattern}
    assert windows(read(tmp_path, architecture, block_count=5, **fields)) == expected


def test_phi3_with_4096_positions_has_a_window_by_default(tmp_path: Path) -> None:
    of_4k = {"block_count": 32, "context_length": 4096}
    assert windows(read(tmp_path, "phi3", **of_4k)) == [2047] * 32
    assert windows(read(tmp_path, "phi3", attention__sliding_window=0, **of_4k)) == [None] * 32
    assert windows(read(tmp_path, "phi3", attention__sliding_window=9)) == [9] * LAYERS
    assert windows(read(tmp_path, "phi3")) == [None] * LAYERS


def test_granite_factors_of_zero_have_no_effect(tmp_path: Path) -> None:
    names = ("attention__scale", "embedding_scale", "residual_scale", "logit_scale")
    for fields in ({}, dict.fromkeys(names, 0.0)):
        found = read(tmp_path, "granite", **fields)
        assert found.attention_scale == HEAD_DIM**-0.5
        scales = (found.embedding_scale, found.residual_scale, found.logit_scale)
        assert scales == (1.0, 1.0, 1.0)


def test_equal_counts_for_each_layer_become_one_count(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        attention__head_count=[HEADS] * LAYERS,
        attention__head_count_kv=[2] * LAYERS,
        feed_forward_length=[96] * LAYERS,
    )
    assert (found.num_heads, found.num_kv_heads, found.intermediate_size) == (HEADS, 2, 96)
    config = config_of(tmp_path, attention__head_count_kv=None)
    assert config["num_key_value_heads"] == HEADS


def test_every_config_sets_the_keys_with_defaults_in_transformers(tmp_path: Path) -> None:
    keys = {"sliding_window", "layer_types", "head_dim", "tie_word_embeddings", "rope_parameters"}
    for architecture in ARCHITECTURES:
        config = config_of(tmp_path, architecture)
        assert keys <= config.keys()
        assert len(config["layer_types"]) == LAYERS
        if architecture.startswith("gemma"):
            caps = {"attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"}
            assert caps <= config.keys()


NEUTRAL: list[dict[str, Any]] = [
    {"expert_count": 0, "expert_used_count": 0},
    {"attention__causal": True},
    {"attention__sliding_window": 0},
    {"attention__sliding_window": 128},  # as wide as the context
    {"attention__scale": HEAD_DIM**-0.5},
    {"logit_scale": 1.0, "embedding_scale": 1.0, "residual_scale": 1.0},
    {"attn_logit_softcapping": 0.0, "final_logit_softcapping": 0.0},
    {"attention__value_length": HEAD_DIM, "vocab_size": 40},
    {"tensor_data_layout": "Meta AI original pth"},
    {"rope__scaling__yarn_log_multiplier": 0.0, "rope__scaling__yarn_attn_factor": 1.0},
]


@pytest.mark.parametrize("fields", NEUTRAL)
def test_keys_with_neutral_values_are_ignored(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert config_of(tmp_path, **fields) == config_of(tmp_path)


REFUSED: list[tuple[str, str, Any]] = [
    *(("llama", key, 8) for key in ("expert_count", "nextn_predict_layers", "expert_used_count")),
    *(("llama", "attention.sliding_window", value) for value in (8, 127)),
    ("qwen2", "attention.sliding_window", 8),
    ("llama", "attention.sliding_window_pattern", 2),
    ("llama", "attention.causal", False),
    ("llama", "attention.scale", 0.3),
    ("gemma2", "attention.scale", 0.3),
    ("llama", "attention.value_length", 8),
    ("llama", "attention.key_length_mla", 8),
    ("llama", "attention.temperature_scale", 0.1),
    ("qwen3", "pooling_type", 3),
    ("llama", "vocab_size", 41),
    *((name, "logit_scale", 0.5) for name in ("llama", "gemma2", "smollm3")),
    *(("qwen2", key, 5.0) for key in ("attn_logit_softcapping", "final_logit_softcapping")),
    *(("llama", key, 12.0) for key in ("embedding_scale", "residual_scale")),
    ("granite", "rope.scaling.finetuned", False),
    ("gemma2", "rope.freq_base_swa", 300.0),
    *(("qwen2", "rope.dimension_count", value) for value in (8, 20, 0)),
    *(("phi3", "rope.dimension_count", value) for value in (7, 18, 0)),
    *(("llama", "rope.scaling.type", kind) for kind in ("ntk", "dynamic", "su", "llama3")),
    ("llama", "rope.scaling.type", "longrope"),
    ("llama", "rope.scaling.alpha", 2.0),
    ("llama", "rope.dimension_sections", [1, 2, 3]),
    ("llama", "rope.scaling.yarn_ext_factor", 0.5),
    ("llama", "rope.scaling.yarn_log_multiplier", 0.1),
    ("llama", "key.of.tomorrow", 1),
    ("llama", "key.of.tomorrow", "x"),
    ("llama", "key.of.tomorrow", [1, 2]),
    ("gemma2", "attention.sliding_window", 0),
    *(("gemma3", "attention.sliding_window_pattern", each) for each in ([True], [2, 1])),
]


@pytest.mark.parametrize(("architecture", "key", "value"), REFUSED)
def test_keys_that_the_graph_does_not_implement_are_refused_by_name(
    tmp_path: Path, architecture: str, key: str, value: Any
) -> None:
    with pytest.raises(ModelError, match=rf"{architecture}\.{key.replace('.', '[.]')}"):
        config_of(tmp_path, architecture, **{key.replace(".", "__"): value})


FACTORS = np.ones(HEAD_DIM // 2, np.float32)
REFUSED_TENSORS: list[tuple[str, dict[str, Array], str]] = [
    ("llama", {"blk.2.attn_q.weight": np.ones((64, 64), np.float32)}, r"blk\.2.*block_count is 2"),
    ("llama", {"blk.0.attn_q.scale": FACTORS}, r"blk\.0\.attn_q\.scale"),
    ("llama", {"blk.0.attn_sinks.weight": FACTORS}, r"blk\.0\.attn_sinks"),
    ("llama", {"blk.2.nextn.eh_proj.weight": FACTORS}, r"nextn\.eh_proj"),
    ("llama", {f"blk.{'9' * 5000}.attn_q.weight": FACTORS}, "should not have"),
    *((name, {"rope_freqs.weight": FACTORS}, "rope_freqs") for name in ("qwen2", "gemma3")),
    ("phi3", {"rope_freqs.weight": FACTORS}, "rope_freqs"),
    ("llama", {"rope_freqs.bias": FACTORS}, r"rope_freqs\.bias"),
    ("llama", {"rope_freqs.weight": FACTORS[:1]}, "rope_freqs.weight has 1 factors"),
    ("llama", {"rope_freqs.weight": FACTORS * 0}, "8 positive numbers"),
    ("llama", {"rope_freqs.weight": -FACTORS}, "8 positive numbers"),
    ("llama", {"rope_freqs.weight": FACTORS * np.float32(np.nan)}, r"rope_freqs.weight is nan"),
    (
        "llama",
        {"blk.0.rope_freqs.weight": FACTORS, "blk.1.rope_freqs.weight": 2 * FACTORS},
        "differs from layer to layer",
    ),
    ("llama", {"rope_factors_long.weight": FACTORS}, "only one of the tensors"),
]


@pytest.mark.parametrize(("architecture", "extra", "message"), REFUSED_TENSORS)
def test_unused_and_invalid_tensors_are_refused(
    tmp_path: Path, architecture: str, extra: dict[str, Array], message: str
) -> None:
    stored = converted(architecture, tensors_of(architecture)) | extra
    metadata = base_metadata(architecture)
    path = write_gguf(tmp_path / "m.gguf", architecture, metadata, stored)
    with pytest.raises(ModelError, match=message):
        GgufCheckpoint(path)


def test_equal_tables_of_all_layers_become_one(tmp_path: Path) -> None:
    extra = {f"blk.{i}.rope_freqs.weight": 2 * FACTORS for i in range(LAYERS)}
    stored = converted("llama", llama_tensors()) | extra
    path = write_gguf(tmp_path / "m.gguf", "llama", base_metadata("llama"), stored)
    assert GgufCheckpoint(path).config["rope_parameters"]["factors"] == [2.0] * 8


def test_fused_permuted_queries_keys_and_values_are_split(tmp_path: Path) -> None:
    tensors = llama_tensors()
    stored = converted("llama", tensors)
    for i in range(LAYERS):
        parts = [stored.pop(f"blk.{i}.attn_{part}.weight") for part in "qkv"]
        stored[f"blk.{i}.attn_qkv.weight"] = np.concatenate(parts)
    checkpoint = GgufCheckpoint(
        write_gguf(tmp_path / "m.gguf", "llama", base_metadata("llama"), stored)
    )
    assert checkpoint.names() == set(tensors)
    for name, expected in tensors.items():
        np.testing.assert_array_equal(checkpoint.read(name), expected, err_msg=name)
        np.testing.assert_array_equal(checkpoint.read(name, 3, 21), expected[3:21])
    stored["blk.0.attn_q.weight"] = np.ones((64, 64), np.float32)
    path = write_gguf(tmp_path / "twice.gguf", "llama", base_metadata("llama"), stored)
    with pytest.raises(ModelError, match=r"q_proj.*which another tensor holds too"):
        GgufCheckpoint(path)
