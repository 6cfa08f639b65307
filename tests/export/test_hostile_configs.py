"""Hostile configs are refused at once, by the name of the key, with a ModelError."""

import json
import tracemalloc
from typing import Any

import pytest
from make_tiny_engine import CONFIG
from tiny_models import ArrayCheckpoint, random_checkpoint

from bita.errors import ModelError
from bita.export.architecture import read_architecture
from bita.export.rope import make_rope
from bita.export.tensor_table import TensorTable
from bita.identity import identify
from bita.tensors import head_dim_of

INFINITY, NAN = float("inf"), float("nan")
DEEP = json.loads("[" * 400 + "]" * 400)
VALUES = [
    INFINITY,
    NAN,
    -1,
    0,
    1e308,
    10**30,
    2**63,
    "a/b",
    "64",
    True,
    [],
    [1],
    {},
    {"a": 1},
    DEEP,
]
NUMBERS = [
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("key", NUMBERS)
def test_invalid_sizes_are_refused_by_key(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=key):
        read_architecture({**CONFIG, key: value}, 16)


@pytest.mark.parametrize("value", [INFINITY, NAN, "a", [], {}, DEEP, None, True, 1e300])
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
def test_invalid_real_numbers_are_refused_by_key(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=key):
        read_architecture({**CONFIG, key: value}, 16)


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("gemma2", {"attn_logit_softcapping": 0.0}),
        ("gemma2", {"final_logit_softcapping": -1.0}),
        ("gemma2", {"query_pre_attn_scalar": 0}),
        ("granite", {"attention_multiplier": 0.0}),  # ONNX Runtime reads 0 as 1 / sqrt(head_dim)
        ("granite", {"logits_scaling": 0}),
        ("smollm3", {"no_rope_layer_interval": 0}),
        ("gemma3_text", {"sliding_window_pattern": 0}),
        ("mistral", {"sliding_window": 0}),
    ],
)
def test_divisors_that_are_not_positive_are_refused(family: str, keys: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=next(iter(keys))):
        read_architecture({**CONFIG, "model_type": family, **keys}, 16)


@pytest.mark.parametrize("value", [None, 7, [], {}, DEEP, "", "x" * 10_000])
def test_an_invalid_model_type_gives_a_short_error(value: Any) -> None:
    with pytest.raises(ModelError, match="model_type") as caught:
        read_architecture({**CONFIG, "model_type": value}, 16)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("num_layers", [10**9, 2**32, 10_001])
def test_too_many_layers_are_refused_before_memory_is_allocated(num_layers: int) -> None:
    tracemalloc.start()
    with pytest.raises(ModelError, match=r"num_hidden_layers is \d+, not a whole number of 1 to"):
        read_architecture({**CONFIG, "num_hidden_layers": num_layers}, 16)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_every_invalid_key_is_listed() -> None:
    config = {**CONFIG, "hidden_size": "x", "rms_norm_eps": NAN, "tie_word_embeddings": "yes"}
    with pytest.raises(ModelError, match=r"(?s)3 faults.*hidden_size.*rms_norm_eps.*tie_word"):
        read_architecture(config, 16)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\], not an object"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, r"rope_type \['yarn'\] is not supported"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor is '2', not a number"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "frequencies that are not finite"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": NAN}}, "factor is nan"),
        ({"rope_scaling": {"rope_type": "yarn"}, "rope_theta": 1.0}, "gives no frequencies"),
        ({"layer_types": 7}, "layer_types is 7, not a list of texts"),
        ({"layer_types": [["full_attention"]] * 2}, "layer_types is"),
        ({"quantization_config": DEEP}, "quantization_config = "),
        ({"num_experts": [8]}, r"num_experts = \[8\] is not supported"),
    ],
)
def test_values_of_other_types_are_refused_by_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_architecture({**CONFIG, **keys}, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": None, "low_freq_factor": 4.0}, "is not less than high_freq_factor"),
        ({"low_freq_factor": "1"}, "low_freq_factor is '1'"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0"),
        ({"original_max_position_embeddings": INFINITY}, "original_max_position_embeddings is inf"),
        ({"partial_rotary_factor": 0.01}, "rotates 0 of 64 values"),
        ({"partial_rotary_factor": -1}, "partial_rotary_factor is -1"),
    ],
)
def test_invalid_rotary_numbers_are_refused(changes: dict[str, Any], message: str) -> None:
    rope = {
        **{"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0},
        **{"high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    }
    changes = {"factor": 8.0, **{k: v for k, v in changes.items() if v is not None}}
    with pytest.raises(ValueError, match=message):
        make_rope({**rope, **changes}, 64, 512, 64)


@pytest.mark.parametrize("factors", [[1.0] * 31, [NAN] * 32, "x", None, [[1.0]] * 32, []])
def test_longrope_without_a_factor_for_each_frequency_is_refused(factors: Any) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 512}
    with pytest.raises(ValueError, match="short_factor"):
        make_rope({**rope, "short_factor": factors}, 64, 512, 64)


@pytest.mark.parametrize(
    "config", [{}, {"head_dim": "a"}, {"hidden_size": 8, "num_attention_heads": 0}]
)
def test_heads_without_a_width_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="head"):
        head_dim_of(config)
    with pytest.raises(ModelError, match="head"):
        TensorTable("m", {"model.layers.0.self_attn.qkv_proj.weight": (4, 4)}, config)


@pytest.mark.parametrize("value", [0, -1, "4", INFINITY, NAN, [], 10**30])
@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads"])
def test_invalid_configs_have_no_identity(key: str, value: Any) -> None:
    with pytest.raises(ModelError):
        identify(random_checkpoint(**{key: value}))


def test_the_identity_of_tensors_that_contradict_the_config_is_refused() -> None:
    with pytest.raises(ModelError, match=r"has 64 rows; the config asks for 400 heads of 16"):
        identify(random_checkpoint(num_attention_heads=400, head_dim=16))
    flat = random_checkpoint()
    tensors = {name: tensor.reshape(-1) for name, tensor in flat.tensors.items()}
    with pytest.raises(ModelError, match=r"3 faults"):
        identify(ArrayCheckpoint(flat.config, tensors))
