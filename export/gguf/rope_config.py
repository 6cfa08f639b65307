"""The rotary embedding of a GGUF file as `rope_parameters` of transformers.

As in llama.cpp, a factor without a type is linear, and so is `rope.scale_linear` of older files;
type "none" ignores the factor; `rope.scaling.attn_factor` multiplies cos and sin for every type.
"""

import math
from collections.abc import Mapping
from typing import Any

from bita.export.gguf.architectures import FREQUENCIES, LONG, SHORT, GgufArchitecture
from bita.json_values import Fields

TYPES = ("none", "linear", "yarn", "longrope")
DEFAULT_BASE = 10_000.0
MIN_BASE = 2.0  # of frequencies; bases in use are at least 10,000
MIN_FACTOR, MAX_FACTOR = 1e-4, 1e6  # on positions, and on cos and sin
Factors = Mapping[str, list[float]]


def rope_config(
    fields: Fields, architecture: GgufArchitecture, config: Mapping[str, Any], factors: Factors
) -> dict[str, Any]:
    """Return `rope_theta`, `rope_parameters` and related keys.

    Args:
        fields: The metadata of the architecture; faults and unsupported values are added to its
            faults.
        architecture: The architecture.
        config: The config so far.
        factors: Contents of the tensors of rotary factors, by name.
    """
    head_dim = config["head_dim"]
    rotary = _rotary_width(fields, architecture, head_dim)
    _add_table_faults(fields, factors, rotary // 2)
    theta = fields.number("rope.freq_base", DEFAULT_BASE, least=MIN_BASE)
    rule = _rule(fields, config["max_position_embeddings"], factors)
    parameters = {"rope_theta": theta} | rule
    if rotary != head_dim:
        parameters["partial_rotary_factor"] = _share(rotary, head_dim)
    if architecture.model_type == "gemma2":
        local = fields.number("rope.freq_base_swa", theta, least=MIN_BASE)
        if local != theta:
            fields.faults.append(
                f"{fields.prefix}rope.freq_base_swa is {local:g}, which is not supported with a "
                f"freq_base of {theta:g}"
            )
    if architecture.model_type != "gemma3_text":
        trained = "original_max_position_embeddings"  # Phi-3 reads it outside of rope_parameters
        outer = {trained: parameters[trained]} if trained in parameters else {}
        return {"rope_theta": theta, "rope_parameters": parameters, **outer}
    return {"rope_theta": theta} | _gemma3(fields, parameters)


def _gemma3(fields: Fields, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters for each type of layer.

    Layers with a window have a separate base, and their positions are not stretched.
    """
    local = fields.number("rope.freq_base_swa", DEFAULT_BASE, least=MIN_BASE)
    sliding = {"rope_type": "default", "rope_theta": local}
    return {
        "rope_local_base_freq": local,
        "rope_parameters": {"full_attention": parameters, "sliding_attention": sliding},
    }


def _rotary_width(fields: Fields, architecture: GgufArchitecture, head_dim: int) -> int:
    rotary = fields.whole("rope.dimension_count", head_dim, least=1)
    if rotary == head_dim:
        return rotary
    if not architecture.partial_rotary or rotary % 2 or rotary > head_dim:
        fields.faults.append(
            f"{fields.prefix}rope.dimension_count: rotary embedding on {rotary} of {head_dim} "
            "dimensions is not supported"
        )
        return head_dim
    return rotary


def _share(rotary: int, head_dim: int) -> float:
    """Return the share of a head for which int(head_dim * share) is exactly `rotary`."""
    share = rotary / head_dim
    return share if int(head_dim * share) == rotary else math.nextafter(share, 2.0)


def _add_table_faults(fields: Fields, factors: Factors, size: int) -> None:
    for name, values in factors.items():
        if len(values) != size or not all(0 < value < math.inf for value in values):
            fields.faults.append(
                f"tensor {name}.weight has {len(values)} factors, which must be {size} positive "
                "numbers"
            )
    if (LONG in factors) != (SHORT in factors):
        fields.faults.append(f"only one of the tensors {LONG} and {SHORT} exists")


def _rule(fields: Fields, num_positions: int, factors: Factors) -> dict[str, Any]:
    """Return `rope_type` and its numbers."""
    kind, factor = _kind_and_factor(fields)
    original = fields.whole("rope.scaling.original_context_length", num_positions, least=1)
    amplitude = fields.number("rope.scaling.attn_factor", 1.0, least=MIN_FACTOR, most=MAX_FACTOR)
    _check_extrapolation(fields, kind)
    if kind == "longrope" or LONG in factors or SHORT in factors:
        return _longrope(fields, kind, factor, original, amplitude, factors)
    if kind == "yarn" and FREQUENCIES not in factors:
        return _yarn(fields, factor, original, amplitude)
    if FREQUENCIES in factors and kind != "yarn" and amplitude == 1:
        # llama.cpp divides the frequencies by the factor and the table, so one table holds both
        table = [value * factor for value in factors[FREQUENCIES]]
        return {"rope_type": "gguf_factors", "factors": table}
    if factor == 1 and FREQUENCIES not in factors:
        return _amplified(original, amplitude)
    if amplitude != 1 or kind == "yarn":
        fields.faults.append(
            f"{fields.prefix}rope.scaling: {kind} by {factor:g} with attn_factor {amplitude:g}"
            f"{' and rope_freqs' if FREQUENCIES in factors else ''} is not supported"
        )
    return {"rope_type": "linear", "factor": factor}


def _kind_and_factor(fields: Fields) -> tuple[str, float]:
    kind = fields.text("rope.scaling.type", "linear")
    if kind not in TYPES:
        fields.faults.append(
            f"{fields.prefix}rope.scaling.type is {kind!r} (supported: {', '.join(TYPES)})"
        )
        kind = "none"
    older = fields.number("rope.scale_linear", 0.0, least=0, most=MAX_FACTOR)
    factor = fields.number("rope.scaling.factor", older, least=0, most=MAX_FACTOR)
    if 0 < factor < MIN_FACTOR:
        fields.faults.append(f"{fields.prefix}rope.scaling.factor is {factor:g}")
    return kind, 1.0 if kind == "none" or factor < MIN_FACTOR else factor


def _check_extrapolation(fields: Fields, kind: str) -> None:
    """Check YaRN's share of extrapolation, which must be 1 for yarn, 0 for other types, or unset.

    The value -1 means unset; no other share is supported.
    """
    usual = 1.0 if kind == "yarn" else 0.0
    share = fields.number("rope.scaling.yarn_ext_factor", usual)
    if share not in (usual, -1.0):
        fields.faults.append(
            f"{fields.prefix}rope.scaling.yarn_ext_factor = {share:g} is not supported with "
            f"rope.scaling.type {kind!r}"
        )


def _yarn(fields: Fields, factor: float, original: int, amplitude: float) -> dict[str, Any]:
    betas = {
        f"beta_{name}": fields.number(f"rope.scaling.yarn_beta_{name}", default, MIN_FACTOR, 1e6)
        for name, default in (("fast", 32.0), ("slow", 1.0))
        if f"rope.scaling.yarn_beta_{name}" in fields
    }
    if factor == 1:
        return _amplified(original, amplitude)
    rule = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    if amplitude != 1:  # multiplies YaRN's own amplitude
        own = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        rule["attention_factor"] = amplitude * own
    return rule | betas


def _amplified(original: int, amplitude: float) -> dict[str, Any]:
    """Return a rule with plain positions; cos and sin times `amplitude` is YaRN with factor 1."""
    if amplitude == 1:
        return {"rope_type": "default"}
    return {
        "rope_type": "yarn",
        "factor": 1.0,
        "original_max_position_embeddings": original,
        "attention_factor": amplitude,
    }


def _longrope(
    fields: Fields, kind: str, factor: float, original: int, amplitude: float, factors: Factors
) -> dict[str, Any]:
    if LONG not in factors or SHORT not in factors:
        fields.faults.append(f"{fields.prefix}rope.scaling.type is longrope without its tensors")
    if factor != 1 or kind == "yarn" or FREQUENCIES in factors:
        fields.faults.append(
            f"{fields.prefix}rope.scaling: {LONG} with {kind} by {factor:g}"
            f"{' and rope_freqs' if FREQUENCIES in factors else ''} is not supported"
        )
    return {
        "rope_type": "longrope",
        "short_factor": factors.get(SHORT, []),
        "long_factor": factors.get(LONG, []),
        "original_max_position_embeddings": original,
        "attention_factor": amplitude,
    }
