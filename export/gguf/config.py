"""The metadata of a GGUF file as a `config.json` of transformers.

Every value for which transformers has a default is written, so that a key missing in the file has
llama.cpp's default (`architectures`), not that of transformers.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from bita.errors import ModelError
from bita.export.gguf.architectures import (
    SMOLLM3_ROPE_PERIOD,
    GgufArchitecture,
    architecture_of,
    default_window,
)
from bita.export.gguf.keys import PER_LAYER, Keys, add_unread_faults
from bita.export.gguf.rope_config import rope_config
from bita.json_values import Fields, shown
from bita.tensors import EMBEDDINGS, HEAD

# Limits far above any model in use; larger numbers mean a damaged file, and would exhaust memory.
MAX_LAYERS, MAX_WIDTH, MAX_POSITIONS = 1024, 1 << 20, 1 << 31
NO_TOKEN = 2**32 - 1  # written by some converters if there is no such token
TOKEN_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
LAYER_NAME = re.compile(r"model\.layers\.([0-9]+)\.")


def make_config(
    owner: str,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_factors: Mapping[str, list[float]],
) -> dict[str, Any]:
    """Return the config of a model.

    Args:
        owner: The model, for errors.
        metadata: The metadata of the file.
        shapes: Shapes of the tensors under the names of transformers.
        rope_factors: Contents of those of the tensors `rope_freqs`, `rope_factors_long` and
            `rope_factors_short` that exist.

    Raises:
        ModelError: if the model is not supported; the error lists every fault.
    """
    architecture = architecture_of(owner, metadata)
    prefix = metadata["general.architecture"]
    keys = Keys(metadata, prefix)
    fields = Fields(keys, f"{prefix}.")
    config = _sizes(fields, architecture)
    config |= _stored(fields, metadata, shapes, config["num_hidden_layers"])
    config |= rope_config(fields, architecture, config, rope_factors)
    config |= _windows(fields, architecture, config)
    config |= _extras(fields, prefix, architecture, config)
    _add_layer_faults(fields, metadata, prefix, config["num_hidden_layers"])
    query_scalar = config.get("query_pre_attn_scalar", config["head_dim"]) or 1
    scale = config.get("attention_multiplier", query_scalar**-0.5)
    add_unread_faults(fields, keys, config["max_position_embeddings"], scale)
    fields.check(ModelError, owner)
    return config


def _sizes(fields: Fields, architecture: GgufArchitecture) -> dict[str, Any]:
    num_layers = fields.whole("block_count", least=1, most=MAX_LAYERS)
    positions = fields.whole("context_length", least=1, most=MAX_POSITIONS)
    hidden = fields.whole("embedding_length", least=1, most=MAX_WIDTH)
    inner = fields.whole("feed_forward_length", least=1, most=MAX_WIDTH)
    heads = fields.whole("attention.head_count", least=1, most=MAX_WIDTH)
    kv_heads = fields.whole("attention.head_count_kv", heads, least=1, most=MAX_WIDTH)
    head_dim = fields.whole("attention.key_length", hidden // heads or 1, 1, MAX_WIDTH)
    value_dim = fields.whole("attention.value_length", head_dim, 1, MAX_WIDTH)
    if value_dim != head_dim:
        fields.faults.append(
            f"{fields.prefix}attention.value_length is {value_dim} and key_length {head_dim}; "
            "only equal ones are supported"
        )
    return {
        "model_type": architecture.model_type,
        "architectures": [architecture.class_name],
        "num_hidden_layers": num_layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon", least=1e-12, most=1),
        "max_position_embeddings": positions,
        "hidden_act": architecture.activation,
    }


def _stored(
    fields: Fields,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    num_layers: int,
) -> dict[str, Any]:
    """Return the values that follow from the tensors, and the ids of special tokens."""
    if EMBEDDINGS not in shapes:
        fields.faults.append("tensor token_embd.weight is missing")
    num_tokens = shapes.get(EMBEDDINGS, (1,))[0]
    said = fields.whole("vocab_size", num_tokens, least=1, most=MAX_POSITIONS)
    if said != num_tokens:
        fields.faults.append(
            f"{fields.prefix}vocab_size is {said}, but token_embd.weight has {num_tokens} rows"
        )
    numbers = (int(found[1]) for name in shapes if (found := LAYER_NAME.match(name)))
    beyond = sorted({number for number in numbers if number >= num_layers})
    if beyond:
        fields.faults.append(
            f"there are tensors of blk.{beyond[0]}, but {fields.prefix}block_count is {num_layers}"
        )
    return {
        "vocab_size": num_tokens,
        "tie_word_embeddings": HEAD not in shapes,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in shapes,
        "mlp_bias": "model.layers.0.mlp.down_proj.bias" in shapes,
        **_token_ids(fields, metadata),
    }


def _token_ids(fields: Fields, metadata: Mapping[str, Any]) -> dict[str, int]:
    tokens = Fields(metadata)
    tokens.faults = fields.faults
    found = {ours: tokens.whole_or_null(key, most=NO_TOKEN) for ours, key in TOKEN_IDS.items()}
    return {ours: index for ours, index in found.items() if index not in (None, NO_TOKEN)}


def _windows(
    fields: Fields, architecture: GgufArchitecture, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the layers that see only a window of the text, and its width."""
    num_layers, positions = config["num_hidden_layers"], config["max_position_embeddings"]
    if architecture.window_period is None:
        return {"sliding_window": None, "layer_types": ["full_attention"] * num_layers}
    default = default_window(architecture, num_layers, positions)
    least = 1 if architecture.sliding_window else 0
    window = fields.whole("attention.sliding_window", default, least, MAX_POSITIONS) or None
    has_window = _windowed_layers(fields, architecture, num_layers)
    return {
        # transformers requires a width for a Gemma even if no layer has a window
        "sliding_window": window or (positions if architecture.is_gemma else None),
        "layer_types": [
            "sliding_attention" if window and narrow else "full_attention" for narrow in has_window
        ],
    }


def _windowed_layers(fields: Fields, architecture: GgufArchitecture, num_layers: int) -> list[bool]:
    """Return whether each layer has a window, from a period or from a list of flags.

    The last layer of each period sees everything.
    """
    key, period = "attention.sliding_window_pattern", architecture.window_period
    assert period is not None
    if architecture.is_gemma and key in fields:
        if not isinstance(fields.values[key], np.ndarray):
            period = fields.whole(key, least=0, most=MAX_LAYERS)
        elif len(flags := fields.values[key]) == num_layers and np.isin(flags, (0, 1)).all():
            return [bool(flag) for flag in flags]
        else:
            fields.faults.append(
                f"{fields.prefix}{key} is {shown(flags)}, not {num_layers} flags, one per layer"
            )
    return [not period or (i + 1) % period != 0 for i in range(num_layers)]


def _extras(
    fields: Fields, prefix: str, architecture: GgufArchitecture, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keys that only some architectures have."""
    if architecture.is_gemma:
        return _gemma(fields, architecture, config)
    if prefix == "granite":
        return _granite(fields, config["head_dim"])
    if prefix == "smollm3":
        layers = range(config["num_hidden_layers"])
        return {"no_rope_layers": [int((i + 1) % SMOLLM3_ROPE_PERIOD != 0) for i in layers]}
    return {}


def _gemma(
    fields: Fields, architecture: GgufArchitecture, config: Mapping[str, Any]
) -> dict[str, Any]:
    query_scalar = config["head_dim"]
    if config["num_hidden_layers"] == architecture.layers_of_27b:
        query_scalar = config["hidden_size"] // config["num_attention_heads"]
    caps = {
        "attn_logit_softcapping": architecture.attention_softcap,
        "final_logit_softcapping": architecture.logit_softcap,
    }
    return {
        "hidden_activation": config["hidden_act"],
        "query_pre_attn_scalar": query_scalar,
        **{key: fields.number(key, default, least=0) or None for key, default in caps.items()},
    }


def _granite(fields: Fields, head_dim: int) -> dict[str, Any]:
    """Return Granite's scales; 0 turns a factor off, as in llama.cpp."""
    scales = {
        "attention_multiplier": ("attention.scale", head_dim**-0.5),
        "embedding_multiplier": ("embedding_scale", 1.0),
        "residual_multiplier": ("residual_scale", 1.0),
        "logits_scaling": ("logit_scale", 1.0),
    }
    # Granite's files use this key to switch the rotary embedding on or off.
    if not fields.flag("rope.scaling.finetuned", True):
        fields.faults.append(
            f"{fields.prefix}rope.scaling.finetuned is False: no rotary embedding, which is not "
            "supported"
        )
    return {
        ours: fields.number(key, default, least=0) or default
        for ours, (key, default) in scales.items()
    }


def _add_layer_faults(
    fields: Fields, metadata: Mapping[str, Any], prefix: str, num_layers: int
) -> None:
    """Add a fault for each list of per-layer numbers with a wrong length."""
    for key in PER_LAYER:
        value = metadata.get(f"{prefix}.{key}")
        if isinstance(value, np.ndarray) and len(value) != num_layers:
            fields.faults.append(f"{prefix}.{key} has {len(value)} of {num_layers} layers")
