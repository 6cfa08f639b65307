"""`rope_parameters` of today's configs, made from what older ones say, as transformers makes them.

`rope_scaling`, `rope_theta`, `rope_local_base_freq`, `partial_rotary_factor` and
`original_max_position_embeddings` became one object. Where they contradict each other, the same
one counts as in transformers.
"""

from collections.abc import Mapping
from typing import Any

from bita.export.families import Family
from bita.json_values import Fields, shown

STRETCHED = ("llama3", "yarn", "longrope")  # rules that start from the positions of the training
NESTED_KINDS = {  # the key that holds rope_theta of a kind in older configs, and its default
    "full_attention": ("rope_theta", 1_000_000.0),
    "sliding_attention": ("rope_local_base_freq", 10_000.0),
}


def flat_rope(
    config: Mapping[str, Any], family: Family, read: Mapping[str, Any], fields: Fields
) -> dict[str, Any]:
    """The rotary parameters of all layers.

    config: as it is in the file; read: its keys with their defaults. Faults go to `fields`.
    `rope_scaling` goes before `rope_parameters`, and what these say before keys outside of them;
    only `original_max_position_embeddings` outside goes before the same key inside.
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
        rope["rope_type"] = "longrope"  # what Phi-3 called it
    if rope["rope_type"] in STRETCHED:
        _set_original(config, read, rope)
    if not family.partial_rope:
        _drop_part(config, rope, fields)
    return rope


def nested_rope(
    config: Mapping[str, Any], read: Mapping[str, Any], fields: Fields
) -> dict[str, dict[str, Any]]:
    """The rotary parameters of each type of layer (Gemma 3).

    An object that is not split by type is not read, as in transformers; `rope_scaling` is part of
    the full layers' parameters.
    """
    given = Fields(read["rope_parameters"] or {}, "rope_parameters.")
    ropes = {}
    for kind, (theta_key, theta) in NESTED_KINDS.items():
        rope = {} if given.values.get(kind) is None else dict(given.table(kind))
        if read["rope_parameters"] is None:
            rope = {"rope_type": "default"}  # which goes before `type` of `rope_scaling`
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
    """`rope_type`, which was called `type`; where both are there, the new name counts."""
    former = rope.pop("type", "default")
    rope.setdefault("rope_type", former)


def _drop_part(config: Mapping[str, Any], rope: dict[str, Any], fields: Fields) -> None:
    """Drop `partial_rotary_factor`, which is a fault where it is not neutral.

    transformers does not read it in these families, or fails; others than it would turn a part.
    """
    part = rope.pop("partial_rotary_factor", config.get("partial_rotary_factor"))
    if part not in (1, None):
        fields.faults.append(
            f"partial_rotary_factor = {shown(part)} is not supported: a {config['model_type']} "
            "turns whole heads; remove the key"
        )


def _set_original(config: Mapping[str, Any], read: Mapping[str, Any], rope: dict[str, Any]) -> None:
    name = "original_max_position_embeddings"
    if name in read:  # a key of the family, with a default
        rope[name] = read[name]
    elif name in config:
        rope[name] = config[name]
    else:
        rope.setdefault(name, read["max_position_embeddings"])
