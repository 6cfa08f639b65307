"""The features of a decoder, read from a transformers config; unknown features are refused.

Only the modules that read configs know model families by name (`families`, `standard_config`,
`rope_parameters`, and this one). Everything after them works on features: window and rotary
embedding per layer, norms, biases, scales, soft caps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bita.errors import ModelError, raise_faults
from bita.export.families import FAMILIES, Family
from bita.export.rope import Rope, make_rope
from bita.export.standard_config import family_of, standard_config
from bita.json_values import shown

BIASES = {  # the linear layers to which a key of the config gives biases
    "attention_bias": tuple(f"self_attn.{name}_proj" for name in "qkvo"),
    "mlp_bias": tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class Layer:
    """The features that may differ from layer to layer."""

    rope: Rope | None  # None for a layer without position embedding (NoPE)
    window: int | None  # a token sees itself and the window - 1 tokens before it; None: all tokens


@dataclass(frozen=True)
class Architecture:
    """Numbers and features of a decoder-only transformer; unused scales are 1.0, unused caps 0.0.

    A soft cap is cap * tanh(x / cap).
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
    biases: tuple[str, ...] = ()  # linear layers that may have one, such as "self_attn.q_proj"
    norm_offset: float = 0.0  # added to every norm weight (1.0 for Gemma)
    sandwich_norms: bool = False  # norms also after attention and MLP (Gemma 2, 3)
    qk_norm: bool = (
        False  # RMSNorm on heads of Q and K before the rotary embedding (Qwen3, Gemma 3)
    )
    attention_scale: float = 1.0  # factor on the products of Q and K
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # factor on the output of attention and MLP (Granite)
    logit_scale: float = 1.0

    @property
    def num_layers(self) -> int:
        return len(self.layers)


def read_architecture(config: Mapping[str, Any], capacity: int) -> Architecture:
    """Read a transformers config.

    Args:
        config: The config; a missing key has the default of its class in transformers.
        capacity: C, the number of positions that the engine will serve; LongRoPE depends on it.

    Raises:
        ModelError: if the model is not supported; the error lists every reason.
    """
    model_type, family = config.get("model_type"), family_of(config)
    standard, faults = standard_config(config)
    if family is None:
        faults.insert(0, f"model_type {shown(model_type)} (supported: {', '.join(FAMILIES)})")
        raise_faults(ModelError, "unsupported model", faults)
    assert family is not None
    raise_faults(ModelError, f"unsupported {model_type} model", faults)
    faults += _bad_numbers(standard, family, capacity)
    layers = _layers(standard, family, capacity, faults)
    raise_faults(ModelError, f"unsupported {model_type} model", faults)
    return _assemble(standard, family, layers)


def _assemble(config: Mapping[str, Any], family: Family, layers: tuple[Layer, ...]) -> Architecture:
    """Return the architecture of a standard config without faults."""
    read = {name: config[name] for name in family.keys}  # other keys belong to other families
    query_scalar = read.get("query_pre_attn_scalar") or config["head_dim"]
    hidden_size = read["hidden_size"]
    return Architecture(
        family=config["model_type"],
        hidden_size=hidden_size,
        intermediate_size=read["intermediate_size"],
        num_heads=read["num_attention_heads"],
        num_kv_heads=read["num_key_value_heads"],
        head_dim=config["head_dim"],
        vocab_size=read["vocab_size"],
        max_positions=read["max_position_embeddings"],
        layers=layers,
        activation=ACTIVATIONS[_activation(config, family)],
        norm_eps=read["rms_norm_eps"],
        tied_embeddings=read["tie_word_embeddings"],
        biases=_biases(read, family),
        norm_offset=1.0 if family.gemma else 0.0,
        sandwich_norms=family.gemma,
        qk_norm=family.qk_norm,
        attention_scale=read.get("attention_multiplier") or query_scalar**-0.5,
        attention_softcap=(read["attn_logit_softcapping"] or 0.0) if family.caps_attention else 0.0,
        logit_softcap=read.get("final_logit_softcapping") or 0.0,
        embedding_scale=hidden_size**0.5 if family.gemma else read.get("embedding_multiplier", 1.0),
        residual_scale=read.get("residual_multiplier", 1.0),
        logit_scale=1.0 / read.get("logits_scaling", 1.0),
    )


def _biases(read: Mapping[str, Any], family: Family) -> tuple[str, ...]:
    keyed = [names for key, names in BIASES.items() if read.get(key)]
    return (*family.biases, *(name for names in keyed for name in names))


def _bad_numbers(config: Mapping[str, Any], family: Family, capacity: int) -> list[str]:
    faults = []
    activation = _activation(config, family)
    if activation not in ACTIVATIONS:
        faults.append(
            f"activation {shown(activation)} (supported: {', '.join(sorted(ACTIVATIONS))})"
        )
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % kv_heads:
        faults.append(f"{heads} attention heads are not a multiple of {kv_heads} key-value heads")
    if config["head_dim"] % 16:
        faults.append(f"head_dim {config['head_dim']} is not a multiple of 16")
    limit = config["max_position_embeddings"]
    if capacity > limit:
        faults.append(
            f"capacity {capacity} exceeds the model's {limit} positions; build with "
            f"CAPACITY={limit} or less"
        )
    return faults


def _activation(config: Mapping[str, Any], family: Family) -> str:
    name = config["hidden_activation" if "hidden_activation" in family.keys else "hidden_act"]
    return str(name)


def _layers(
    config: Mapping[str, Any], family: Family, capacity: int, faults: list[str]
) -> tuple[Layer, ...]:
    """Return the layers of a standard config; add faults of their rotary embeddings to `faults`."""
    num_layers = config["num_hidden_layers"]
    if family.windows == "layers":
        kinds = config["layer_types"]
    else:
        is_windowed = family.windows == "all" and config["sliding_window"] is not None
        kinds = ["sliding_attention" if is_windowed else "full_attention"] * num_layers
    windows = {"sliding_attention": config.get("sliding_window"), "full_attention": None}
    ropes = {kind: _rope(config, family, kind, capacity, faults) for kind in sorted(set(kinds))}
    uses_rope = config["no_rope_layers"] if "no_rope_layers" in family.keys else [1] * num_layers
    return tuple(
        Layer(ropes[kind] if uses_rope[index] else None, windows[kind])
        for index, kind in enumerate(kinds)
    )


def _rope(
    config: Mapping[str, Any], family: Family, kind: str, capacity: int, faults: list[str]
) -> Rope | None:
    parameters = config["rope_parameters"]
    if family.nested_rope:
        parameters = parameters[kind]
    try:
        return make_rope(
            parameters, config["head_dim"], config["max_position_embeddings"], capacity
        )
    except ValueError as error:
        if str(error) not in faults:
            faults.append(str(error))
        return None
