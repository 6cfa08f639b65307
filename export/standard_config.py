"""A config in standard form, as its class in transformers holds it: all keys, under today's names.

Contradicting keys are resolved as in transformers, and refused where transformers fails, or where
a key that changes the computation would be dropped.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from bita.export.families import FAMILIES, FOREIGN_KEYS, Family
from bita.export.rope_parameters import flat_rope, nested_rope
from bita.json_values import Fields, shown
from bita.tensors import MAX_HEAD_DIM

LAYER_KINDS = ("full_attention", "sliding_attention")
FORMER_KINDS = {"attention": "full_attention"}  # names in older configs
# Keys that `rope_parameters` replaces.
FORMER_ROPE_KEYS = (
    "rope_scaling",
    "rope_theta",
    "rope_local_base_freq",
    "partial_rotary_factor",
)


def family_of(config: Mapping[str, Any]) -> Family | None:
    """Return the family that the config's model_type names, or None."""
    model_type = config.get("model_type")
    return FAMILIES.get(model_type) if isinstance(model_type, str) else None


def standard_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the config with every key of its family, and its faults.

    Without faults, each value has the type given in `families`, `head_dim` and
    `num_key_value_heads` are numbers, and only `rope_parameters` describes rotary embeddings. If
    the family has `layer_types` and `no_rope_layers`, they have an entry for each layer. Such a
    config is its own standard form. The config of an unknown family is returned unchanged.
    """
    family = family_of(config)
    if family is None:
        return dict(config), _foreign_features(config)
    fields = Fields(config)
    read = {name: key.take(fields, name) for name, key in family.keys.items()}
    faults = _foreign_features(config) + fields.faults
    if fields.faults:
        return {**config, **read}, faults
    read["num_key_value_heads"] = read["num_key_value_heads"] or read["num_attention_heads"]
    read["head_dim"] = read.get("head_dim") or _head_dim(fields, read)
    _set_layers(config, family, read, faults)
    if family.nested_rope:
        read["rope_parameters"] = nested_rope(config, read, fields)
    else:
        read["rope_parameters"] = flat_rope(config, family, read, fields)
    faults += fields.faults
    others = {
        name: deepcopy(value) for name, value in config.items() if name not in _replaced(family)
    }
    return {**others, **read}, faults


def _replaced(family: Family) -> set[str]:
    """Return the keys that the standard form omits: replaced by others, or read by nothing."""
    replaced = set(FORMER_ROPE_KEYS)
    if family.windows != "layers":
        replaced.add("layer_types")
    if family.windows == "none":
        replaced.add("sliding_window")
    return replaced


def _head_dim(fields: Fields, read: Mapping[str, Any]) -> int:
    """Return `head_dim` if the family's class has no such key, or derives it from hidden_size."""
    given = fields.whole_or_null("head_dim", None, 1, MAX_HEAD_DIM)
    derived = read["hidden_size"] // read["num_attention_heads"]
    if not given and not derived:
        fields.faults.append(
            f"hidden_size {read['hidden_size']} is less than num_attention_heads "
            f"{read['num_attention_heads']}"
        )
    return given or max(derived, 1)


def _foreign_features(config: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} = {shown(config[key])} is not supported"
        for key, neutral in FOREIGN_KEYS.items()
        if key in config and config[key] not in neutral
    ]


def _set_layers(
    config: Mapping[str, Any], family: Family, read: dict[str, Any], faults: list[str]
) -> None:
    """Set the keys that differ between layers: `layer_types`, `no_rope_layers`, the window."""
    num_layers = read["num_hidden_layers"]
    if "use_sliding_window" in read and "no_rope_layers" not in read:  # Qwen
        read["sliding_window"] = read["sliding_window"] if read["use_sliding_window"] else None
    if "no_rope_layers" in read:
        _set_rope_layers(read, num_layers, faults)
    given = _given_types(config, family, read, num_layers, faults)
    if family.windows == "layers":
        read["layer_types"] = given or _types_of(config, read, num_layers, faults)
        windowed = "sliding_attention" in read["layer_types"]
    else:
        windowed = family.windows == "all" and read["sliding_window"] is not None
        _check_unread_windows(config, family, read, given, faults)
    if windowed and (read["sliding_window"] is None or read["sliding_window"] < 1):
        faults.append(
            f"sliding_window is {read['sliding_window']}, but layers with sliding attention need "
            "a whole number of at least 1"
        )


def _set_rope_layers(read: dict[str, Any], num_layers: int, faults: list[str]) -> None:
    given, interval = read["no_rope_layers"], read["no_rope_layer_interval"]
    if given is None:
        read["no_rope_layers"] = [int((i + 1) % interval != 0) for i in range(num_layers)]
    elif len(given) < num_layers:
        faults.append(f"no_rope_layers has {len(given)} entries for {num_layers} layers")


def _given_types(
    config: Mapping[str, Any],
    family: Family,
    read: Mapping[str, Any],
    num_layers: int,
    faults: list[str],
) -> list[str] | None:
    """Return `layer_types` under today's names; None if they are missing or unusable."""
    if family.windows == "layers":
        given = read["layer_types"]
    else:  # transformers stores the key, but only its cache reads it
        fields = Fields(config)
        given = None if config.get("layer_types") is None else list(fields.texts("layer_types"))
        faults += fields.faults
    if given is None:
        return None
    kinds = [FORMER_KINDS.get(kind, kind) for kind in given]
    unknown = sorted(set(kinds) - set(LAYER_KINDS))
    if unknown:
        faults.append(f"layer_types has {shown(unknown[0])} (supported: {', '.join(LAYER_KINDS)})")
        return None
    if len(kinds) != num_layers:
        faults.append(f"layer_types has {len(kinds)} entries for {num_layers} layers")
        return None
    return kinds


def _types_of(
    config: Mapping[str, Any], read: Mapping[str, Any], num_layers: int, faults: list[str]
) -> list[str]:
    """Return the `layer_types` that the family's class derives for a config without them."""
    model_type, layers = config["model_type"], range(num_layers)
    if model_type == "gemma2":
        windowed = [i % 2 == 0 for i in layers]
    elif model_type == "gemma3_text":
        fields = Fields(config)
        period = fields.whole("sliding_window_pattern", 6, least=1)
        faults += fields.faults
        windowed = [(i + 1) % period != 0 for i in layers]
    elif model_type == "smollm3":
        slides = read["use_sliding_window"] and read["sliding_window"] is not None
        windowed = [slides and not rope for rope in read["no_rope_layers"][:num_layers]]
    else:
        first = read["max_window_layers"]
        windowed = [read["sliding_window"] is not None and i >= first for i in layers]
    return [LAYER_KINDS[is_windowed] for is_windowed in windowed]


def _check_unread_windows(
    config: Mapping[str, Any],
    family: Family,
    read: Mapping[str, Any],
    kinds: list[str] | None,
    faults: list[str],
) -> None:
    """Add faults for windows on which the layers of transformers and its cache disagree.

    The layers of these families read `sliding_window` or nothing. The cache prefers `layer_types`,
    which their classes do not have.
    """
    window = config.get("sliding_window") if family.windows == "none" else read["sliding_window"]
    if family.windows == "none" and window is not None:
        faults.append(
            f"sliding_window = {shown(window)} is not supported: a {config['model_type']} has no "
            "windows; remove the key or set it to null"
        )
    wanted = "full_attention" if window is None else "sliding_attention"
    if kinds and set(kinds) != {wanted}:
        other = next(kind for kind in kinds if kind != wanted)
        faults.append(
            f"layer_types has {other!r}, but sliding_window is {shown(window)}, which applies to "
            f"all layers of a {config['model_type']}; remove layer_types"
        )
