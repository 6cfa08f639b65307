"""The features of a decoder, read from a transformers config; what is unknown is refused.

`read_architecture` is the only place that knows model families by name. Everything behind it
works on features: window and rotary embedding per layer, norms, scales, soft caps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bita.errors import ModelError, raise_faults
from bita.export.rope import Rope, make_rope
from bita.tensors import head_dim_of

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class Layer:
    """What may differ from layer to layer.

    rope: None for a layer without position embedding (NoPE).
    window: a token sees itself and window - 1 tokens before it; None for all.
    """

    rope: Rope | None
    window: int | None


@dataclass(frozen=True)
class Architecture:
    """Numbers and features of a decoder-only transformer; scales are 1.0 and caps 0.0 when unused.

    sandwich_norms: norms behind attention and MLP too, before the residual sum (Gemma 2, 3).
    norm_offset: added to every norm weight (1.0 for Gemma).
    qk_norm: RMSNorm on each head of Q and K before the rotary embedding (Qwen3, Gemma 3).
    residual_scale: factor on the output of attention and MLP before the sum (Granite).
    attention_softcap, logit_softcap: cap * tanh(x / cap).
    """

    family: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    layers: tuple[Layer, ...]
    activation: str
    norm_eps: float
    tied_embeddings: bool
    norm_offset: float = 0.0
    sandwich_norms: bool = False
    qk_norm: bool = False
    attention_scale: float = 1.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0

    @property
    def num_layers(self) -> int:
        return len(self.layers)


@dataclass(frozen=True)
class Family:
    """How a model_type differs from Llama where its config does not say so."""

    gemma: bool = False  # (1 + weight) norms, sandwich norms, embeddings times sqrt(hidden)
    qk_norm: bool = False
    tied_embeddings: bool = False  # the default of the config class
    windowed: str = "none"  # which layers use sliding_window when layer_types is absent


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(windowed="all"),
    "qwen2": Family(windowed="upper"),
    "qwen3": Family(windowed="upper", qk_norm=True),
    "smollm3": Family(tied_embeddings=True),
    "phi3": Family(windowed="all"),
    "gemma2": Family(gemma=True, tied_embeddings=True, windowed="alternate"),
    "gemma3_text": Family(gemma=True, tied_embeddings=True, windowed="five_of_six", qk_norm=True),
    "granite": Family(),
}

# Keys that change the computation in ways the graph does not have; neutral values are allowed.
FOREIGN_KEYS: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "num_local_experts": (None, 0, 1),
    "num_experts": (None, 0, 1),
    "use_bidirectional_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "vision_config": (None,),
    "attention_chunk_size": (None,),
    "kv_lora_rank": (None,),
}


def read_architecture(config: Mapping[str, Any], capacity: int) -> Architecture:
    """Read a transformers config. Raises ModelError that lists every reason of a refusal.

    capacity: C, the positions the engine will serve; LongRoPE depends on it.
    """
    model_type = str(config.get("model_type"))
    faults = _foreign_features(config)
    family = FAMILIES.get(model_type)
    if family is None:
        faults.insert(0, f"model_type {model_type!r} (supported: {', '.join(FAMILIES)})")
        raise_faults(ModelError, "unsupported model", faults)
    assert family is not None
    faults += _missing_numbers(config)
    raise_faults(ModelError, f"unsupported {model_type} model", faults)
    head_dim = head_dim_of(config)
    layers, rope_faults = _layers(config, family, head_dim, capacity)
    faults += rope_faults + _bad_numbers(config, family, head_dim, capacity)
    raise_faults(ModelError, f"unsupported {model_type} model", faults)
    return _assemble(config, model_type, family, head_dim, layers)


def _assemble(
    config: Mapping[str, Any],
    model_type: str,
    family: Family,
    head_dim: int,
    layers: tuple[Layer, ...],
) -> Architecture:
    query_scalar = float(config.get("query_pre_attn_scalar") or head_dim)
    hidden_size = int(config["hidden_size"])
    return Architecture(
        family=model_type,
        hidden_size=hidden_size,
        intermediate_size=int(config["intermediate_size"]),
        num_heads=int(config["num_attention_heads"]),
        num_kv_heads=int(config.get("num_key_value_heads") or config["num_attention_heads"]),
        head_dim=head_dim,
        vocab_size=int(config["vocab_size"]),
        max_positions=int(config["max_position_embeddings"]),
        layers=layers,
        activation=ACTIVATIONS[_activation(config)],
        norm_eps=float(config["rms_norm_eps"]),
        tied_embeddings=bool(config.get("tie_word_embeddings", family.tied_embeddings)),
        norm_offset=1.0 if family.gemma else 0.0,
        sandwich_norms=family.gemma,
        qk_norm=family.qk_norm,
        attention_scale=float(config.get("attention_multiplier") or query_scalar**-0.5),
        attention_softcap=float(config.get("attn_logit_softcapping") or 0.0),
        logit_softcap=float(config.get("final_logit_softcapping") or 0.0),
        embedding_scale=hidden_size**0.5
        if family.gemma
        else float(config.get("embedding_multiplier") or 1.0),
        residual_scale=float(config.get("residual_multiplier") or 1.0),
        logit_scale=1.0 / float(config.get("logits_scaling") or 1.0),
    )


def _foreign_features(config: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} = {str(config[key])[:60]!r} is not supported"
        for key, neutral in FOREIGN_KEYS.items()
        if key in config and config[key] not in neutral
    ]


def _missing_numbers(config: Mapping[str, Any]) -> list[str]:
    needed = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "rms_norm_eps",
        "max_position_embeddings",
    )
    return [
        f"config has {key} = {config.get(key)!r}, not a positive number"
        for key in needed
        if isinstance(config.get(key), bool)
        or not isinstance(config.get(key), (int, float))
        or config[key] <= 0
    ]


def _bad_numbers(
    config: Mapping[str, Any], family: Family, head_dim: int, capacity: int
) -> list[str]:
    faults = []
    if _activation(config) not in ACTIVATIONS:
        faults.append(
            f"activation {_activation(config)!r} (supported: {', '.join(sorted(ACTIVATIONS))})"
        )
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    if heads % kv_heads:
        faults.append(f"{heads} attention heads are no multiple of {kv_heads} key-value heads")
    if head_dim % 16:
        faults.append(f"head_dim {head_dim} is no multiple of 16")
    kinds = config.get("layer_types")
    if kinds and len(kinds) != config["num_hidden_layers"]:
        num_layers = config["num_hidden_layers"]
        faults.append(f"layer_types has {len(kinds)} entries for {num_layers} layers")
    if capacity > config["max_position_embeddings"]:
        faults.append(
            f"capacity {capacity} exceeds the model's {config['max_position_embeddings']} "
            f"positions; build with CAPACITY={config['max_position_embeddings']} or less"
        )
    return faults


def _activation(config: Mapping[str, Any]) -> str:
    return str(config.get("hidden_activation") or config.get("hidden_act"))


def _layers(
    config: Mapping[str, Any], family: Family, head_dim: int, capacity: int
) -> tuple[tuple[Layer, ...], list[str]]:
    num_layers = int(config["num_hidden_layers"])
    sliding = _sliding_layers(config, family, num_layers)
    uses_rope = config.get("no_rope_layers") or _smollm3_rope_layers(config, num_layers)
    max_positions = int(config["max_position_embeddings"])
    ropes: dict[bool, Rope | None] = {}
    faults = []
    for local in sorted(set(sliding)):
        try:
            parameters = _rope_parameters(config, local)
            ropes[local] = make_rope(parameters, head_dim, max_positions, capacity)
        except ValueError as error:
            faults.append(str(error))
            ropes[local] = None
    window = config.get("sliding_window")
    layers = tuple(
        Layer(ropes[local] if uses_rope[i] else None, int(window) if local and window else None)
        for i, local in enumerate(sliding)
    )
    return layers, faults


def _smollm3_rope_layers(config: Mapping[str, Any], num_layers: int) -> list[int]:
    interval = config.get("no_rope_layer_interval")
    if config.get("model_type") != "smollm3" or not interval:
        return [1] * num_layers
    return [int((i + 1) % interval != 0) for i in range(num_layers)]


def _sliding_layers(config: Mapping[str, Any], family: Family, num_layers: int) -> list[bool]:
    """Which layers attend within sliding_window only."""
    if config.get("layer_types"):
        return [kind == "sliding_attention" for kind in config["layer_types"]]
    if not config.get("sliding_window"):
        return [False] * num_layers
    if family.windowed == "all":
        return [True] * num_layers
    if family.windowed == "upper":
        first = int(config.get("max_window_layers", num_layers))
        return [bool(config.get("use_sliding_window")) and i >= first for i in range(num_layers)]
    if family.windowed == "alternate":
        return [i % 2 == 0 for i in range(num_layers)]
    if family.windowed == "five_of_six":
        pattern = int(config.get("sliding_window_pattern") or 6)
        return [(i + 1) % pattern != 0 for i in range(num_layers)]
    return [False] * num_layers


def _rope_parameters(config: Mapping[str, Any], local: bool) -> dict[str, Any]:
    """`rope_parameters` of the full or the sliding layers, from today's and older configs."""
    given = dict(config.get("rope_parameters") or {})
    kind = "sliding_attention" if local else "full_attention"
    if kind in given:
        given = dict(given[kind])
    if not given:
        given = dict(config.get("rope_scaling") or {})
        if local and config.get("rope_local_base_freq"):
            given = {"rope_theta": config["rope_local_base_freq"]}
    given.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if config.get(key) is not None:
            given.setdefault(key, config[key])
    return given
