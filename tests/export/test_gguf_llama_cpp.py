"""llama.cpp and transformers compute the same logits from one GGUF file.

llama.cpp reads the file itself, and transformers gets config and weights from GgufCheckpoint.
Wrong row orders, norm offsets, scales, windows or rotary factors would show. The tests need
llama-cpp-python.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from tiny_gguf import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, VOCAB, Array

from bita.export.gguf.checkpoint import GgufCheckpoint

llama_cpp = pytest.importorskip("llama_cpp")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NUM_TOKENS = 30
GEMMA = {"attention.sliding_window": 8}
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama3": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "yarn": (
        "qwen3",
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        },
    ),
    "gemma2": ("gemma2", GEMMA | CAPS),
    "gemma3": ("gemma3", GEMMA | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
    "phi3": ("phi3", {}),
    "longrope": (
        "phi3",
        {
            "context_length": 1024,  # llama.cpp takes the short factors up to 512 positions
            "rope.scaling.original_context_length": 512,
            "rope.scaling.attn_factor": 1.2,
            "rope.dimension_count": 12,
        },
    ),
    "granite": (
        "granite",
        {
            "attention.scale": 0.4,
            "embedding_scale": 3.0,
            "residual_scale": 0.5,
            "logit_scale": 2.0,
        },
    ),
    "smollm3": ("smollm3", {}),
    # missing keys, and the forms of older converters
    "gemma2 of defaults": ("gemma2", {}),
    "gemma3 without windows": ("gemma3", {}),
    "gemma2 by threes": ("gemma2", GEMMA | {"attention.sliding_window_pattern": 3}),
    "gemma3 by threes": ("gemma3", GEMMA | {"attention.sliding_window_pattern": 3}),
    "gemma3 with a cap": ("gemma3", GEMMA | {"final_logit_softcapping": 2.0}),
    "gemma3 with another base": ("gemma3", GEMMA | {"rope.freq_base_swa": 300.0}),
    "gemma3 yarn": ("gemma3", GEMMA | {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}),
    "granite of zeros": (
        "granite",
        {
            "attention.scale": 0.0,
            "embedding_scale": 0.0,
            "residual_scale": 0.0,
            "logit_scale": 2.0,
        },
    ),
    "factor without a type": ("llama", {"rope.scaling.factor": 4.0}),
    "scale_linear": ("llama", {"rope.scale_linear": 4.0}),
    "both factors": ("llama", {"rope.scale_linear": 4.0, "rope.scaling.factor": 2.0}),
    "type none": ("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
    "factor 0": ("llama", {"rope.scaling.factor": 0.0}),
    "no base": ("llama", {"rope.freq_base": None}),
    "attn_factor": ("llama", {"rope.scaling.attn_factor": 1.3}),
    "llama3 by a factor": ("llama", {"rope.scaling.factor": 4.0}),
    "yarn from all": ("qwen3", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}),
    "yarn attn_factor": (
        "qwen3",
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.attn_factor": 1.3,
        },
    ),
    "yarn by less than 1": ("qwen3", {"rope.scaling.type": "yarn", "rope.scaling.factor": 0.5}),
    "heads by layer": ("llama", {"attention.head_count": [HEADS] * 6}),
}


def model_tensors(architecture: str) -> dict[str, Array]:
    """Return random weights, small enough that logits stay near one, with norms around one."""
    generator = np.random.default_rng(5)
    gemma = architecture.startswith("gemma")

    def norm(size: int) -> Array:
        return (0.2 * generator.standard_normal(size) + (not gemma)).astype(np.float32)

    tensors = tiny_gguf.llama_tensors(tied=gemma)
    for name, value in tensors.items():
        tensors[name] = 0.15 * value if value.ndim == 2 else norm(len(value))
    for i in range(tiny_gguf.LAYERS):
        layer = f"model.layers.{i}."
        if architecture == "qwen2":
            for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
                tensors[f"{layer}self_attn.{part}_proj.bias"] = norm(heads * HEAD_DIM) - 1
        for part in ("q", "k") if architecture in ("qwen3", "gemma3") else ():
            tensors[f"{layer}self_attn.{part}_norm.weight"] = norm(HEAD_DIM)
        for part in ("pre", "post") if gemma else ():
            tensors[f"{layer}{part}_feedforward_layernorm.weight"] = norm(HIDDEN)
        if architecture == "phi3":
            fuse(tensors, f"{layer}self_attn.", ("q_proj", "k_proj", "v_proj"), "qkv_proj")
            fuse(tensors, f"{layer}mlp.", ("gate_proj", "up_proj"), "gate_up_proj")
    return tensors


def fuse(tensors: dict[str, Array], prefix: str, parts: tuple[str, ...], whole: str) -> None:
    values = [tensors.pop(f"{prefix}{part}.weight") for part in parts]
    tensors[f"{prefix}{whole}.weight"] = np.concatenate(values)


def write_case(path: Path, case: str) -> Path:
    architecture, fields = CASES[case]
    metadata = tiny_gguf.base_metadata(architecture)
    metadata |= {f"{architecture}.attention.value_length": HEAD_DIM}
    metadata |= {f"{architecture}.rope.dimension_count": HEAD_DIM}
    metadata |= {f"{architecture}.{key}": value for key, value in fields.items()}
    metadata["tokenizer.ggml.tokens"][-1] = "AB"
    metadata["tokenizer.ggml.merges"] = ["A B"]  # llama.cpp needs at least one
    stored = tiny_gguf.converted(architecture, model_tensors(architecture))
    if case.startswith("llama3"):
        stored["rope_freqs.weight"] = np.linspace(1, 8, HEAD_DIM // 2, dtype=np.float32)
    if case == "longrope":
        for name, most in (("short", 2), ("long", 9)):
            stored[f"rope_factors_{name}.weight"] = np.linspace(1, most, 6, dtype=np.float32)
    return tiny_gguf.write_gguf(path, architecture, metadata, stored)


def logits_of_transformers(checkpoint: GgufCheckpoint, tokens: list[int]) -> Array:
    config = dict(checkpoint.config) | {"bos_token_id": None, "pad_token_id": None}
    factors = config["rope_parameters"].get("factors")
    if factors:  # transformers has no such rule
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config), attn_implementation="eager"
    ).float()
    weights = {name: checkpoint.read(name) for name in checkpoint.names()}
    if config["model_type"] == "phi3":
        for i in range(tiny_gguf.LAYERS):
            layer = f"model.layers.{i}."
            fuse(weights, f"{layer}self_attn.", ("q_proj", "k_proj", "v_proj"), "qkv_proj")
            fuse(weights, f"{layer}mlp.", ("gate_proj", "up_proj"), "gate_up_proj")
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    result = model.load_state_dict(tensors, strict=False)
    assert not result.unexpected_keys
    model.tie_weights()
    if factors:
        model.model.rotary_emb.inv_freq /= torch.tensor(factors)
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_llama_cpp(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_gguf, "LAYERS", 6)  # one global layer of Gemma 3, one without rope
    path = write_case(tmp_path / "m.gguf", case)
    tokens = np.random.default_rng(0).integers(0, VOCAB - 2, NUM_TOKENS).tolist()
    llama = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=2)
    llama.eval(tokens)
    expected = np.array(llama.scores[:NUM_TOKENS])
    logits = logits_of_transformers(GgufCheckpoint(path), tokens)
    assert np.abs(logits - expected).max() < 0.03 * expected.std()  # llama.cpp has a float16 cache
