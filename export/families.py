"""The families of decoders: the keys of their configs, and the meaning of a missing key.

Keys and defaults are those of the config classes of transformers, which uses the default of the
class for a key that `config.json` leaves out. null is a value of its own, which only some keys may
have: `attn_logit_softcapping` of Gemma 2 is 50.0 if it is missing, and off if it is null. Keys that
no class of the family has are stored by transformers, but no layer reads them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bita.json_values import Fields
from bita.tensors import MAX_HEAD_DIM

MAX_LAYERS = 10_000
MAX_HEADS = 2**16

MAX_SIZE = 2**31 - 1
MIN_SCALE = 1e-12  # smallest value of divisors, and of numbers for which 0 means "off"


@dataclass(frozen=True)
class Key:
    """A key of a config."""

    default: Any  # the value of a missing key
    read: Callable[[Fields, str], Any]  # reads a value that is not null
    nullable: bool = False

    def take(self, fields: Fields, name: str) -> Any:
        """Return the value or the default; add a fault to `fields` for a bad value."""
        if name not in fields:
            return self.default
        if self.nullable and fields.values[name] is None:
            return None
        return self.read(fields, name)


@dataclass(frozen=True)
class Family:
    """The differences of a model_type from Llama."""

    keys: Mapping[str, Key]  # the keys of its config that are read
    windows: str = "none"  # layers with `sliding_window`: "none", "all", "layers" (`layer_types`)
    gemma: bool = False  # (1 + weight) norms, sandwich norms, embeddings times sqrt(hidden)
    qk_norm: bool = False
    default_theta: float = 10_000.0  # `rope_theta` if no key gives it
    nested_rope: bool = False  # whether each type of layer has its own rotary parameters
    partial_rope: bool = False  # whether only part of a head may be rotated
    caps_attention: bool = False  # whether `attn_logit_softcapping` applies; Gemma 3 ignores it
    # linear layers that always have a bias; `attention_bias` and `mlp_bias` add others
    biases: tuple[str, ...] = ()


def _size(default: int, most: int = MAX_SIZE) -> Key:
    return Key(default, lambda fields, name: fields.whole(name, least=1, most=most))


def _heads(default: int | None, nullable: bool = True) -> Key:
    return Key(default, lambda fields, name: fields.whole(name, least=1, most=MAX_HEADS), nullable)


def _head_dim(default: int | None) -> Key:
    return Key(
        default,
        lambda fields, name: fields.whole(name, least=1, most=MAX_HEAD_DIM),
        nullable=default is None,
    )


def _number(default: float, least: float = -1e30) -> Key:
    return Key(default, lambda fields, name: fields.number(name, least=least, most=1e30))


def _cap(default: float | None) -> Key:
    return Key(default, lambda fields, name: fields.number(name, least=MIN_SCALE, most=1e30), True)


def _flag(default: bool) -> Key:
    return Key(default, lambda fields, name: fields.flag(name))


def _text(default: str) -> Key:
    return Key(default, lambda fields, name: fields.text(name))


def _whole(default: int) -> Key:
    return Key(default, lambda fields, name: fields.whole(name, least=-MAX_SIZE, most=MAX_SIZE))


def _window(default: int | None) -> Key:
    # Any number is accepted, since it is not read if no layer has a window.
    return Key(
        default, lambda fields, name: fields.whole(name, least=-MAX_SIZE, most=MAX_SIZE), True
    )


def _query_scalar(fields: Fields, name: str) -> float:
    """Read a number; a whole one becomes an int, since the config classes accept no other type."""
    value = fields.number(name, least=MIN_SCALE, most=1e30)
    return int(value) if value.is_integer() else value


LAYER_TYPES = Key(None, lambda fields, name: list(fields.texts(name)), nullable=True)
ROPE_PARAMETERS = Key(None, lambda fields, name: fields.table(name), nullable=True)
ROPE_LAYERS = Key(None, lambda fields, name: list(fields.wholes(name)), nullable=True)

_LLAMA = {
    "vocab_size": _size(32_000),
    "hidden_size": _size(4096),
    "intermediate_size": _size(11_008),
    "num_hidden_layers": _size(32, MAX_LAYERS),
    "num_attention_heads": _size(32, MAX_HEADS),
    "num_key_value_heads": _heads(None),
    "head_dim": _head_dim(None),
    "hidden_act": _text("silu"),
    "max_position_embeddings": _size(2048),
    "rms_norm_eps": _number(1e-6, 0.0),
    "tie_word_embeddings": _flag(False),
    "rope_parameters": ROPE_PARAMETERS,
    "attention_bias": _flag(False),
    "mlp_bias": _flag(False),
}
_GRANITE = _LLAMA | {
    "embedding_multiplier": _number(1.0),
    "logits_scaling": _number(1.0, MIN_SCALE),
    "residual_multiplier": _number(1.0),
    "attention_multiplier": _number(1.0, MIN_SCALE),
}
_NO_BIAS = {key: value for key, value in _LLAMA.items() if not key.endswith("_bias")}
_MISTRAL = _NO_BIAS | {
    "intermediate_size": _size(14_336),
    "num_key_value_heads": _heads(8, nullable=False),
    "max_position_embeddings": _size(131_072),
    "sliding_window": _window(4096),
}
_QWEN2 = _NO_BIAS | {
    "vocab_size": _size(151_936),
    "intermediate_size": _size(22_016),
    "num_key_value_heads": _heads(32),
    "max_position_embeddings": _size(32_768),
    "use_sliding_window": _flag(False),
    "sliding_window": _window(4096),
    "max_window_layers": _whole(28),
    "layer_types": LAYER_TYPES,
}
_QWEN3 = _QWEN2 | {"head_dim": _head_dim(128), "attention_bias": _flag(False)}
_SMOLLM3 = _LLAMA | {
    "vocab_size": _size(128_256),
    "hidden_size": _size(2048),
    "num_hidden_layers": _size(36, MAX_LAYERS),
    "num_attention_heads": _size(16, MAX_HEADS),
    "num_key_value_heads": _heads(4),
    "max_position_embeddings": _size(32_768),
    "tie_word_embeddings": _flag(True),
    "use_sliding_window": _flag(False),
    "sliding_window": _window(None),
    "no_rope_layers": ROPE_LAYERS,
    "no_rope_layer_interval": _size(4),
    "layer_types": LAYER_TYPES,
}
_PHI3 = _NO_BIAS | {
    "vocab_size": _size(32_064),
    "hidden_size": _size(3072),
    "intermediate_size": _size(8192),
    "max_position_embeddings": _size(4096),
    "original_max_position_embeddings": _size(4096),
    "rms_norm_eps": _number(1e-5, 0.0),
    "sliding_window": _window(None),
}
_GEMMA2 = {key: value for key, value in _NO_BIAS.items() if key != "hidden_act"} | {
    "vocab_size": _size(256_000),
    "hidden_size": _size(2304),
    "intermediate_size": _size(9216),
    "num_hidden_layers": _size(26, MAX_LAYERS),
    "num_attention_heads": _size(8, MAX_HEADS),
    "num_key_value_heads": _heads(4, nullable=False),
    "head_dim": _head_dim(256),
    "hidden_activation": _text("gelu_pytorch_tanh"),
    "max_position_embeddings": _size(8192),
    "tie_word_embeddings": _flag(True),
    "attention_bias": _flag(False),
    "query_pre_attn_scalar": Key(256, _query_scalar),
    "sliding_window": _window(4096),
    "layer_types": LAYER_TYPES,
    "final_logit_softcapping": _cap(30.0),
    "attn_logit_softcapping": _cap(50.0),
}
_GEMMA3 = _GEMMA2 | {
    "vocab_size": _size(262_208),
    "max_position_embeddings": _size(131_072),
    "final_logit_softcapping": _cap(None),
    "attn_logit_softcapping": _cap(None),
}
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

FAMILIES: dict[str, Family] = {
    "llama": Family(_LLAMA),
    "mistral": Family(_MISTRAL, windows="all"),
    "qwen2": Family(_QWEN2, windows="layers", biases=_QKV),
    "qwen3": Family(_QWEN3, windows="layers", qk_norm=True),
    "smollm3": Family(_SMOLLM3, windows="layers", default_theta=2_000_000.0),
    "phi3": Family(_PHI3, windows="all", partial_rope=True),
    "gemma2": Family(_GEMMA2, windows="layers", gemma=True, caps_attention=True),
    "gemma3_text": Family(_GEMMA3, windows="layers", gemma=True, qk_norm=True, nested_rope=True),
    "granite": Family(_GRANITE),
}

# Keys of the config classes that change no logits: tokens, training, loading, outputs.
NEUTRAL_KEYS = frozenset(
    {
        *("transformers_version", "architectures", "dtype", "initializer_range"),
        *("pad_token_id", "bos_token_id", "eos_token_id"),
        *("attention_dropout", "resid_pdrop", "embd_pdrop", "chunk_size_feed_forward"),
        *("use_cache", "output_hidden_states", "return_dict", "pretraining_tp"),
        *("id2label", "label2id", "problem_type"),
    }
)

# Keys of features that the graph does not have, and the values that turn each feature off.
FOREIGN_KEYS: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "num_local_experts": (None, 0, 1),
    "num_experts": (None, 0, 1),
    "use_bidirectional_attention": (None, False),
    "is_causal": (True,),
    "is_encoder_decoder": (None, False),
    "text_config": (None,),
    "vision_config": (None,),
    "attention_chunk_size": (None,),
    "kv_lora_rank": (None,),
    "kv_sharing_modes": (None,),
    "per_layer_config": (None,),
    "transformers_weights": (None,),
    "fusion_config": (None,),
}
