"""Convert older rotary keys to today's `rope_parameters`, as in transformers.

`rope_scaling`, `rope_theta`, `rope_local_base_freq`, `partial_rotary_factor` and
`original_max_position_embeddings` became one object. If keys contradict each other, the same key
takes precedence as in transformers.
"""

from collections.abc import Mapping
from typing import Any

from bita.export.families import Family
from bita.json_values import Fields, shown

STRETCHED = ("llama3", "yarn", "longrope")  # rules that need the context length of training
NESTED_KINDS = {  # the key that holds rope_theta of a kind in older configs, and its default
    "full_attention": ("rope_theta", 1_000_000.0),
    "sliding_attention": ("rope_local_base_freq", 10_000.0),
}


def flat_rope(
    config: Mapping[str, Any], family: Family, read: Mapping[str, Any], fields: Fields
) -> dict[str, Any]:
    """Return the rotary parameters of all layers.

    `rope_scaling` takes precedence over `rope_parameters`, and keys inside these over keys outside
    of them, except that `original_max_position_embeddings` outside takes precedence.

    Args:
        config: The config as it is in the file.
        family: The family of the model.
        read: The keys of the config with their defaults.
        fields: The fields of the config, to which faults are added.
    """
    rope = _scaling(fields) or read["rope_parameters"] or {}
    nested = [kind for kind in NESTED_KINDS if kind in rope]
    if nested:
        fields.faults.append(
            f"rope_parameters has {nested[0]!r}, but a {config['model_type']} has one rotary "
            "embedding for all layers"
        )
        return {}
    rope = dict(rope)
    rope.setdefault("rope_theta", config.get("rope_theta", family.default_theta))
    if "partial_rotary_factor" in config:
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    _set_rule(rope)
    if family.partial_rope and rope["rope_type"] in ("su", "yarn") and "short_factor" in rope:
        rope["rope_type"] = "longrope"  # older configs of Phi-3 have other names for it
    if rope["rope_type"] in STRETCHED:
        _set_original(config, read, rope)
    if not family.partial_rope:
        _drop_part(config, rope, fields)
    return rope


def nested_rope(
    config: Mapping[str, Any], read: Mapping[str, Any], fields: Fields
) -> dict[str, dict[str, Any]]:
    """Return the rotary parameters of each type of layer (Gemma 3).

    As in transformers, an object that is not split by type is ignored, and `rope_scaling` applies
    to the layers with full attention. Arguments are those of `flat_rope`.
    """
    given = Fields(read["rope_parameters"] or {}, "rope_parameters.")
    ropes = {}
    for kind, (theta_key, theta) in NESTED_KINDS.items():
        rope = {} if given.values.get(kind) is None else dict(given.table(kind))
        if read["rope_parameters"] is None:
            rope = {"rope_type": "default"}  # takes precedence over `type` of `rope_scaling`
        if kind == "full_attention":
            rope |= _scaling(fields)
        rope.setdefault("rope_theta", config.get(theta_key, theta))
        _set_rule(rope)
        if rope["rope_type"] in STRETCHED:
            rope.setdefault("original_max_position_embeddings", read["max_position_embeddings"])
        _drop_part(config, rope, fields)
        ropes[kind] = rope
    fields.faults += given.faults
    return ropes


def _scaling(fields: Fields) -> dict[str, Any]:
    return {} if fields.values.get("rope_scaling") is None else fields.table("rope_scaling")


def _set_rule(rope: dict[str, Any]) -> None:
    """Rename `type` to `rope_type`; if both exist, `rope_type` takes precedence."""
    former = rope.pop("type", "default")
    rope.setdefault("rope_type", former)


def _drop_part(config: Mapping[str, Any], rope: dict[str, Any], fields: Fields) -> None:
    """Drop `partial_rotary_factor`; a value that is not neutral is a fault.

    In these families transformers ignores it or fails, while other programs rotate part of a head.
    """
    part = rope.pop("partial_rotary_factor", config.get("partial_rotary_factor"))
    if part not in (1, None):
        fields.faults.append(
            f"partial_rotary_factor = {shown(part)} is not supported: a {config['model_type']} "
            "rotates whole heads; remove the key"
        )


def _set_original(config: Mapping[str, Any], read: Mapping[str, Any], rope: dict[str, Any]) -> None:
    name = "original_max_position_embeddings"
    if name in read:  # a key of the family, with a default
        rope[name] = read[name]
    elif name in config:
        rope[name] = config[name]
    else:
        rope.setdefault(name, read["max_position_embeddings"])
