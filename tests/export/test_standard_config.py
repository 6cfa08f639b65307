"""The standard form of a config equals the config that transformers has after reading it."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tiny_models import tiny_config

pytest.importorskip("transformers")

from transformers import AutoConfig

from bita.errors import ModelError
from bita.export.architecture import read_architecture
from bita.export.families import FAMILIES
from bita.export.standard_config import standard_config

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"type": "longrope", "short_factor": [1.5] * 8, "long_factor": [2.0] * 8}
# Older names and contradictions. Some families read a case, and the others ignore it.
CHANGES: list[dict[str, Any]] = [
    {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    {"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 4.0}},
    {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 3e4},
    {"rope_scaling": None},
    {"rope_scaling": {}},
    {"rope_scaling": LLAMA3},
    {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}},
    {
        "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64},
        "original_max_position_embeddings": 256,
    },
    {"rope_scaling": LONG},
    {"rope_scaling": {**LONG, "original_max_position_embeddings": 128}},
    {"rope_scaling": LONG, "original_max_position_embeddings": 256},
    {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    {"rope_theta": 5e5},
    {"rope_local_base_freq": 7e3},
    {"partial_rotary_factor": 1.0},
    {"partial_rotary_factor": None},
    {"layer_types": ["full_attention"] * 4},
    {"layer_types": ["attention", "sliding_attention"] * 2, "sliding_window": 8},
    {"sliding_window": 8},
    {"sliding_window": None},
    {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 2},
    {"sliding_window_pattern": 2},
    {"_sliding_window_pattern": 2},
    {"no_rope_layers": [0, 1, 1, 0, 1, 1, 1]},
    {"no_rope_layers": []},
    {"no_rope_layer_interval": 3},
    {"no_rope_layer_interval": 0},
    {"head_dim": 32},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 2.0},
    {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "silu"},
    {"tie_word_embeddings": True},
    {"attn_logit_softcapping": 5.0, "final_logit_softcapping": None},
    {"embedding_multiplier": 2.0, "attention_multiplier": 0.5},
    {"architectures": ["OtherForCausalLM"], "torch_dtype": "float16", "dtype": "float32"},
]
# Faults that transformers accepts: windows that its layers and its cache read differently, and
# numbers with which its forward pass fails.
REFUSED_BY_US = {
    "has no windows",
    "layer_types has",
    "layers with sliding attention need",
    "is not a number",
    "head_dim",
    "key-value heads",
    "factors for",
    "rotates whole heads",
}
# Cases that only transformers refuses: whole numbers written as 2.0, and for Phi-3 all rules but
# LongRoPE, and LongRoPE as its first configs wrote it.
REFUSED_BY_THEM = {"2.0", "short_factor", "rope_type", "yarn", "linear"}


def variants() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the family, the difference and the config of each case."""
    for family in FAMILIES:
        base = tiny_config(family)
        for name in FAMILIES[family].keys:
            yield family, f"no {name}", {k: v for k, v in base.items() if k != name}
            yield family, f"{name} null", {**base, name: None}
        for change in CHANGES:
            what = json.dumps(change)
            yield family, what, {**base, **change}
            older = {k: v for k, v in base.items() if k != "rope_parameters"}
            yield family, f"older, {what}", {**older, **change}


VARIANTS = [pytest.param(*each, id=f"{each[0]}, {each[1]}") for each in variants()]


def theirs(config: dict[str, Any]) -> Any:
    """Return the config of transformers, standardized again as its rotary embedding does."""
    made = AutoConfig.for_model(**copy.deepcopy(config))
    if made.rope_parameters.get("rope_type") in ("llama3", "yarn", "longrope"):
        made.standardize_rope_params()
    return made


def rope_of(rope: dict[str, Any], family: str) -> dict[str, Any]:
    """Return the rotary parameters without those that no rule reads."""
    if FAMILIES[family].nested_rope:
        kinds = ("full_attention", "sliding_attention")
        return {kind: without(rope[kind], "type") for kind in kinds}
    is_whole = rope.get("partial_rotary_factor") in (None, 1.0)
    read = without(rope, "type")
    return without(read, "partial_rotary_factor") if is_whole else read


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


@pytest.mark.parametrize(("family", "what", "config"), VARIANTS)
def test_the_standard_form_equals_the_config_of_transformers(
    family: str, what: str, config: dict[str, Any]
) -> None:
    original = copy.deepcopy(config)
    standard, faults = standard_config(config)
    assert config == original
    if not faults:
        assert standard_config(standard) == (standard, [])
    try:
        expected = theirs(config)
    except Exception:  # of many kinds
        assert is_refused(config) or any(part in what for part in REFUSED_BY_THEM)
        return
    if faults:
        assert any(part in faults[0] for part in REFUSED_BY_US), faults
        return
    given: Any
    for name in FAMILIES[family].keys:
        ours, given = standard[name], getattr(expected, name, None)
        if name == "head_dim":
            given = given or expected.hidden_size // expected.num_attention_heads
        if name == "rope_parameters":
            ours, given = rope_of(ours, family), rope_of(given, family)
        assert (type(ours), ours) == (type(given), given), name


def is_refused(config: dict[str, Any]) -> bool:
    try:
        read_architecture(config, 64)
    except ModelError:
        return True
    return False
