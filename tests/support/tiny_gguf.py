"""Small GGUF files, written by the gguf package as llama.cpp's converter writes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, INTERMEDIATE, VOCAB = 64, 4, 2, 16, 2, 96, 40
PERMUTED = ("llama", "granite", "smollm3")
Array = npt.NDArray[np.float32]


def base_metadata(architecture: str) -> dict[str, Any]:
    """Return the fields that every architecture needs, and a vocabulary of single characters."""
    numbers = {
        "block_count": LAYERS,
        "context_length": 128,
        "embedding_length": HIDDEN,
        "feed_forward_length": INTERMEDIATE,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 5000.0,
    }
    return {
        **{f"{architecture}.{key}": value for key, value in numbers.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [chr(ord("A") + i) for i in range(VOCAB)],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": 3,
    }


def llama_tensors(seed: int = 0, tied: bool = True) -> dict[str, Array]:
    """Return random weights of a tiny Llama under the names of transformers."""
    generator = np.random.default_rng(seed)

    def random(*shape: int) -> Array:
        return generator.standard_normal(shape).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": random(VOCAB, HIDDEN),
        "model.norm.weight": random(HIDDEN),
    }
    if not tied:
        tensors["lm_head.weight"] = random(VOCAB, HIDDEN)
    for i in range(LAYERS):
        layer = {
            "input_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
            "post_attention_layernorm": (HIDDEN,),
            "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
            "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        }
        for name, shape in layer.items():
            tensors[f"model.layers.{i}.{name}.weight"] = random(*shape)
    return tensors


def permute(weight: Array, num_heads: int) -> Array:
    """Put rows into the order in which llama.cpp's converter writes Q and K."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def converted(architecture: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return the tensors that llama.cpp's converter would store for tensors of transformers."""
    kind = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(kind, LAYERS)
    stored = {}
    for name, value in tensors.items():
        if architecture in PERMUTED and ".q_proj." in name:
            value = permute(value, HEADS)
        if architecture in PERMUTED and ".k_proj." in name:
            value = permute(value, KV_HEADS)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            value = value + 1
        stored[str(names.get_name(name, (".weight", ".bias")))] = value
    return stored


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Array],
    kinds: Mapping[str, tuple[npt.NDArray[np.uint8], Kind]] | None = None,
) -> Path:
    """Write metadata (None leaves a field out), float32 `tensors` and quantized `kinds`."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add_field(writer, key, value)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    for name, (data, kind) in (kinds or {}).items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            pass
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def write_model(
    path: Path, architecture: str = "llama", tensors: dict[str, Array] | None = None, **fields: Any
) -> Path:
    """Write a tiny model; `fields` are metadata of the architecture, with `__` for a dot."""
    metadata = base_metadata(architecture)
    metadata |= {f"{architecture}.{key.replace('__', '.')}": v for key, v in fields.items()}
    stored = converted(architecture, llama_tensors() if tensors is None else tensors)
    return write_gguf(path, architecture, metadata, stored)


def gemma_tensors(architecture: str) -> dict[str, Array]:
    tensors = llama_tensors()
    for i in range(LAYERS):
        for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            tensors[f"model.layers.{i}.{name}.weight"] = np.full(HIDDEN, 0.25, np.float32)
        for name in ("q_norm", "k_norm") if architecture == "gemma3" else ():
            tensors[f"model.layers.{i}.self_attn.{name}.weight"] = np.full(
                HEAD_DIM, -0.5, np.float32
            )
    return tensors
