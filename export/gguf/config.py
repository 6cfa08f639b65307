"""The metadata of a GGUF file as a `config.json` of transformers.

Numbers that llama.cpp keeps in its program and not in the file (Gemma's layer pattern and query
scale, SmolLM3's layers without rotary embedding) are given here with the same values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bita.errors import ModelError, raise_faults
from bita.tensors import EMBEDDINGS, HEAD

# Layers and hidden size by which llama.cpp knows a Gemma 27B, whose queries are scaled by
# hidden_size / heads and not by the head size.
GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
REQUIRED = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}
TOKEN_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
GRANITE_SCALES = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
SOFTCAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
# Keys whose values change the computation in ways the config below cannot say.
FOREIGN_KEYS = ("expert_count", "attention.clamp_kqv", "attention.max_alibi_bias")


@dataclass(frozen=True)
class GgufArchitecture:
    """How files of one `general.architecture` differ.

    permuted: llama.cpp stores the rows of Q and K so that rotary pairs are neighbours.
    norm_offset: what llama.cpp added to each norm weight.
    """

    model_type: str
    class_name: str
    activation: str = "silu"
    permuted: bool = False
    norm_offset: float = 0.0


ARCHITECTURES = {
    "llama": GgufArchitecture("llama", "LlamaForCausalLM", permuted=True),
    "qwen2": GgufArchitecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": GgufArchitecture("qwen3", "Qwen3ForCausalLM"),
    "gemma2": GgufArchitecture("gemma2", "Gemma2ForCausalLM", "gelu_pytorch_tanh", norm_offset=1.0),
    "gemma3": GgufArchitecture(
        "gemma3_text", "Gemma3ForCausalLM", "gelu_pytorch_tanh", norm_offset=1.0
    ),
    "phi3": GgufArchitecture("phi3", "Phi3ForCausalLM"),
    "granite": GgufArchitecture("granite", "GraniteForCausalLM", permuted=True),
    "smollm3": GgufArchitecture("smollm3", "SmolLM3ForCausalLM", permuted=True),
}


class Fields:
    """The metadata of one architecture, by the names that follow its prefix."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.architecture = str(metadata.get("general.architecture"))

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}", default)


def architecture_of(owner: str, metadata: Mapping[str, Any]) -> GgufArchitecture:
    """Raises ModelError with what is there and what is supported."""
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{owner}: general.architecture is {name!r}; supported: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def make_config(
    owner: str,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_factors: Mapping[str, list[float]],
) -> dict[str, Any]:
    """The config of a model whose tensors have these `shapes` (names of transformers).

    rope_factors: contents of `rope_freqs`, `rope_factors_long`, `rope_factors_short`, if there.
    """
    fields, architecture = Fields(metadata), architecture_of(owner, metadata)
    raise_faults(ModelError, owner, _faults(fields, shapes))
    heads = int(fields.get("attention.head_count"))
    config: dict[str, Any] = {
        "model_type": architecture.model_type,
        "architectures": [architecture.class_name],
        "vocab_size": shapes[EMBEDDINGS][0],
        "hidden_act": architecture.activation,
        "num_key_value_heads": int(fields.get("attention.head_count_kv", heads)),
        "head_dim": _head_dim(fields),
        "tie_word_embeddings": HEAD not in shapes,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in shapes,
        "mlp_bias": "model.layers.0.mlp.down_proj.bias" in shapes,
        **{ours: fields.get(theirs) for ours, theirs in REQUIRED.items()},
        **{ours: metadata[key] for ours, key in TOKEN_IDS.items() if key in metadata},
    }
    config |= _rope(fields, config, rope_factors)
    config |= _extras(fields, config)
    return config


def _faults(fields: Fields, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    prefix = fields.architecture
    faults = [f"metadata {prefix}.{k} is missing" for k in REQUIRED.values() if not fields.get(k)]
    faults += [
        f"{prefix}.{k} = {fields.get(k)} is not supported" for k in FOREIGN_KEYS if fields.get(k)
    ]
    if EMBEDDINGS not in shapes:
        faults.append("tensor token_embd.weight is missing")
    varying = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    faults += [f"{prefix}.{k} varies by layer" for k in varying if hasattr(fields.get(k), "shape")]
    rotary, key_length = fields.get("rope.dimension_count"), _head_dim(fields)
    if rotary and key_length and rotary != key_length and ARCHITECTURES[prefix].permuted:
        faults.append(f"{prefix} with rotary embedding on {rotary} of {key_length} dimensions")
    return faults


def _head_dim(fields: Fields) -> int | None:
    heads, hidden = fields.get("attention.head_count"), fields.get("embedding_length")
    if not isinstance(heads, int) or not hidden or not heads:
        return None
    return int(fields.get("attention.key_length", hidden // heads))


def _extras(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    """What only some architectures have."""
    window = fields.get("attention.sliding_window") or None
    match fields.architecture:
        case "gemma2" | "gemma3":
            return _gemma(fields, config, window)
        case "granite":
            given = {ours: fields.get(theirs) for ours, theirs in GRANITE_SCALES.items()}
            given["attention_multiplier"] = (
                given["attention_multiplier"] or config["head_dim"] ** -0.5
            )
            return {ours: value for ours, value in given.items() if value is not None}
        case "smollm3":
            return {
                "no_rope_layers": [
                    int((i + 1) % 4 != 0) for i in range(config["num_hidden_layers"])
                ]
            }
        case "phi3":
            return {"sliding_window": window}
        case _:
            return {}


def _gemma(fields: Fields, config: Mapping[str, Any], window: int | None) -> dict[str, Any]:
    period = 2 if fields.architecture == "gemma2" else 6  # the last layer of a period is global
    layers = range(config["num_hidden_layers"])
    kinds = ["sliding_attention" if (i + 1) % period else "full_attention" for i in layers]
    scale = fields.get("attention.scale")
    if scale:
        query_scalar = scale**-2
    elif len(layers) == GEMMA_27B_LAYERS[fields.architecture]:
        query_scalar = config["hidden_size"] // config["num_attention_heads"]
    else:
        query_scalar = config["head_dim"]
    return {
        "hidden_activation": config["hidden_act"],
        "query_pre_attn_scalar": query_scalar,
        "sliding_window": window,
        "layer_types": kinds if window else ["full_attention"] * len(layers),
        **{ours: fields.get(theirs) for ours, theirs in SOFTCAPS.items()},
    }


def _rope(
    fields: Fields, config: Mapping[str, Any], factors: Mapping[str, list[float]]
) -> dict[str, Any]:
    theta = float(fields.get("rope.freq_base", 10000.0))
    parameters = {"rope_theta": theta} | _rope_rule(fields, factors)
    trained = "original_max_position_embeddings"  # Phi-3 reads it outside of rope_parameters
    outer = {trained: parameters[trained]} if parameters.get(trained) else {}
    rotary = int(fields.get("rope.dimension_count", config["head_dim"]))
    if rotary != config["head_dim"]:
        parameters["partial_rotary_factor"] = rotary / config["head_dim"]
    if fields.architecture != "gemma3":
        return {"rope_theta": theta, "rope_parameters": parameters, **outer}
    local = float(fields.get("rope.freq_base_swa", 10000.0))
    return {
        "rope_theta": theta,
        "rope_local_base_freq": local,
        "rope_parameters": {
            "full_attention": parameters,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }


def _rope_rule(fields: Fields, factors: Mapping[str, list[float]]) -> dict[str, Any]:
    original = fields.get("rope.scaling.original_context_length")
    if "rope_factors_short" in factors and "rope_factors_long" in factors:
        return {
            "rope_type": "longrope",
            "short_factor": factors["rope_factors_short"],
            "long_factor": factors["rope_factors_long"],
            "original_max_position_embeddings": original or fields.get("context_length"),
            "attention_factor": fields.get("rope.scaling.attn_factor"),
        }
    if "rope_freqs" in factors:
        return {"rope_type": "gguf_factors", "factors": factors["rope_freqs"]}
    kind = fields.get("rope.scaling.type", "none")
    factor = float(fields.get("rope.scaling.factor", 1.0))
    if kind == "none" or factor == 1.0:
        return {"rope_type": "default"}
    rule = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
    if kind == "yarn":
        rule["beta_fast"] = fields.get("rope.scaling.yarn_beta_fast")
        rule["beta_slow"] = fields.get("rope.scaling.yarn_beta_slow")
    return {key: value for key, value in rule.items() if value is not None}
