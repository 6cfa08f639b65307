"""Engines treat missing config keys and contradictory files exactly as transformers does.

The reference is transformers with the same directory.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import write_tiny_model

pytest.importorskip("transformers")
pytest.importorskip("torch")

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from bita.errors import ModelError
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.families import FAMILIES
from bita.export.sources import open_checkpoint
from bita.runtime.session import Session

logging.set_verbosity_error()
IDS = np.random.default_rng(0).integers(5, 300, 40).tolist()  # longer than the windows
SIZES = {  # a tiny model cannot use the default sizes of the class
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads"),
}
Tensors = dict[str, np.ndarray]
Edit = Callable[[Tensors], None]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that writes the directory of a tiny model once."""
    root = tmp_path_factory.mktemp("models")

    def write(family: str) -> Path:
        path = root / family
        return path if path.exists() else write_tiny_model(family, path)

    return write


def copy_with(
    source: Path, out: Path, config: dict[str, Any] | None = None, edit: Edit | None = None
) -> Path:
    """Copy a model with other config keys (`...` removes one) and other tensors."""
    shutil.copytree(source, out)
    content = json.loads((out / "config.json").read_text()) | (config or {})
    content = {name: value for name, value in content.items() if value is not ...}
    (out / "config.json").write_text(json.dumps(content))
    if edit:
        tensors = load_file(out / "model.safetensors")
        edit(tensors)
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def assert_equal(model: Path) -> None:
    """Assert that the engine of a model gives the same log probabilities as transformers."""
    net = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
    with torch.no_grad():
        theirs = torch.log_softmax(net(torch.tensor([IDS])).logits[0, -1], -1).numpy()
    engine = model / "engine"
    options = BuildOptions(precision="fp32", capacity=64)
    build_engine(check_build(open_checkpoint(str(model)), None, engine, options))
    result = Session.open(engine).generate(IDS, 1, ignore_eos=True, logprobs=20)
    assert result.logprobs is not None
    for token, ours in result.logprobs[0].best:
        assert ours == pytest.approx(theirs[token], abs=1e-3)


def check(model: Path) -> None:
    open_checkpoint(str(model))
    check_build(open_checkpoint(str(model)), None, model / "engine", BuildOptions(capacity=64))


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("gemma2", {"attn_logit_softcapping": ...}),
        ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
        ("gemma3_text", {"query_pre_attn_scalar": ..., "rope_parameters": ...}),
        ("smollm3", {"rope_parameters": ..., "no_rope_layers": ..., "no_rope_layer_interval": ...}),
        ("granite", {"attention_multiplier": ..., "logits_scaling": ...}),
        ("qwen3", {"query_pre_attn_scalar": 5, "attention_multiplier": 3.0, "clip_qkv": 0.1}),
        ("qwen2", {"layer_types": ..., "use_sliding_window": True, "max_window_layers": 1}),
        ("llama3", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 5e4}),
        ("llama3", {"original_max_position_embeddings": 256}),
        ("llama", {"architectures": ["MistralForCausalLM"], "attention_bias": True}),
    ],
)
def test_contradictions_are_read_as_transformers_reads_them(
    tiny_model: Callable[[str], Path], tmp_path: Path, family: str, keys: dict[str, Any]
) -> None:
    if "use_sliding_window" in keys:
        keys = {**keys, "sliding_window": 8}
    assert_equal(copy_with(tiny_model(family), tmp_path / "model", keys))


def other_head(tensors: Tensors) -> None:
    shape = tensors["model.embed_tokens.weight"].shape
    head = np.random.default_rng(1).normal(0, 0.3, shape)
    tensors["lm_head.weight"] = head.astype(np.float32)


def head_for_embeddings(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


def biases_of_queries(tensors: Tensors) -> None:
    for index in range(4):
        tensors[f"model.layers.{index}.self_attn.q_proj.bias"] = np.ones(64, np.float32)


def rotary_buffer(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("edit", "keys"),
    [
        (other_head, {}),
        (head_for_embeddings, {}),
        (biases_of_queries, {"attention_bias": True}),
        (rotary_buffer, {}),
    ],
)
def test_tensors_that_contradict_the_config_are_used_as_in_transformers(
    tiny_model: Callable[[str], Path], tmp_path: Path, edit: Edit, keys: dict[str, Any]
) -> None:
    assert_equal(copy_with(tiny_model("llama"), tmp_path / "model", keys, edit))


def test_an_output_layer_equal_to_the_embeddings_is_written_once(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    def same_head(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    checkpoint = open_checkpoint(
        str(copy_with(tiny_model("llama"), tmp_path / "model", {}, same_head))
    )
    assert checkpoint.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in checkpoint.names()


def no_head(tensors: Tensors) -> None:
    tensors.pop("lm_head.weight", None)


def another_layer(tensors: Tensors) -> None:
    layer = {name: tensor for name, tensor in tensors.items() if "layers.0." in name}
    tensors |= {name.replace("layers.0.", "layers.4."): tensor for name, tensor in layer.items()}


def bias_of_one_layer(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(64, np.float32)


def bias_of_the_head(tensors: Tensors) -> None:
    tensors["lm_head.bias"] = np.ones(320, np.float32)


def norm_of_queries(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(16, np.float32)


def adapter(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.q_proj.lora_A.weight"] = np.ones((4, 64), np.float32)


@pytest.mark.parametrize(
    ("edit", "keys", "message"),
    [
        (no_head, {"tie_word_embeddings": False}, "lm_head.weight is missing, and tie_word_emb"),
        (another_layer, {}, r"layers\.4\.input_layernorm\.weight belongs to a feature"),
        (biases_of_queries, {}, r"q_proj\.bias belongs to a feature"),
        (bias_of_one_layer, {"attention_bias": True}, r"layers\.1\.self_attn\.q_proj\.bias is mis"),
        (bias_of_the_head, {}, r"lm_head\.bias belongs to a feature"),
        (norm_of_queries, {}, r"q_norm\.weight belongs to a feature"),
        (adapter, {}, r"lora_A\.weight belongs to a feature"),
    ],
)
def test_missing_and_unused_tensors_are_refused(
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    edit: Edit,
    keys: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ModelError, match=message):
        check(copy_with(tiny_model("llama"), tmp_path / "model", keys, edit))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"is_causal": False}, "is_causal = False"),
        ({"per_layer_config": {"0": {"hidden_act": "gelu"}}}, "per_layer_config = "),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights = 'other"),
        ({"text_config": {"hidden_size": 64}}, "text_config = "),
        ({"sliding_window": 8}, "sliding_window = 8 is not supported: a llama has no windows"),
        ({"partial_rotary_factor": 0.5}, "a llama rotates whole heads"),
        ({"rope_parameters": {"full_attention": {}}}, "'full_attention', but a llama has one"),
        ({"vocab_size": ...}, r"embed_tokens.weight has shape \(320, 64\), expected \(32000, 64\)"),
    ],
)
def test_keys_that_change_the_computation_are_refused(
    tiny_model: Callable[[str], Path], tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        check(copy_with(tiny_model("llama"), tmp_path / "model", keys))


@pytest.mark.parametrize(
    "kinds", [["full_attention"] * 4, ["full_attention", "sliding_attention"] * 2]
)
def test_layer_types_that_contradict_the_sliding_window_are_refused(
    tiny_model: Callable[[str], Path], tmp_path: Path, kinds: list[str]
) -> None:
    with pytest.raises(ModelError, match="layer_types has 'full_attention', but sliding_window is"):
        check(copy_with(tiny_model("mistral"), tmp_path / "model", {"layer_types": kinds}))


def optional_keys() -> Iterator[tuple[str, str, Any]]:
    """Yield family, key, and `...` or None, for each key whose default suits a tiny model."""
    for family in FAMILIES:
        for name, key in FAMILIES[family].keys.items():
            if name not in SIZES:
                yield family, name, ...
                if key.nullable:
                    yield family, name, None


@pytest.mark.thorough
@pytest.mark.parametrize(("family", "key", "value"), list(optional_keys()))
def test_missing_and_null_keys_give_the_logits_of_transformers(
    tiny_model: Callable[[str], Path], tmp_path: Path, family: str, key: str, value: Any
) -> None:
    keys = {key: value}
    if (
        key == "tie_word_embeddings"
        and "lm_head.weight" not in open_checkpoint(str(tiny_model(family))).names()
    ):
        keys["tie_word_embeddings"] = True if FAMILIES[family].keys[key].default is False else ...
    model = copy_with(tiny_model(family), tmp_path / "model", keys)
    if key == "sliding_window" and value is None and family.startswith("gemma"):
        with pytest.raises(ModelError, match="layers with sliding attention need"):
            check(model)
        return
    assert_equal(model)
