"""Rotary position embeddings: inverse frequencies of each scaling rule, and the cos/sin tables.

Formulas: RoFormer (default), position interpolation (linear), Llama 3.1 (llama3), YaRN (yarn),
LongRoPE (longrope); names and defaults are those of `rope_parameters` in transformers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bita.tensors import Float32Array, Float64Array

RULES = ("default", "linear", "llama3", "yarn", "longrope", "gguf_factors")


@dataclass(frozen=True)
class Rope:
    """One rotary embedding: angle of dimension i at position p is p * inv_freq[i].

    inv_freq: radians per position, rotary_dim / 2 of them.
    amplitude: factor on both cos and sin; 1.0 unless YaRN or LongRoPE stretch the context.
    max_positions: positions beyond it need other frequencies (LongRoPE); None for no such bound.
    """

    inv_freq: tuple[float, ...]
    amplitude: float = 1.0
    max_positions: int | None = None

    def tables(self, num_positions: int) -> tuple[Float32Array, ...]:
        """cos and sin, each [num_positions, rotary_dim / 2]."""
        # float32 products like the reference implementations: at position 8000 the rounding of the
        # angle is visible in the logits, and the weights were trained with it.
        angles = np.outer(
            np.arange(num_positions, dtype=np.float32), np.asarray(self.inv_freq, np.float32)
        )
        amplitude = np.float32(self.amplitude)
        return np.cos(angles) * amplitude, np.sin(angles) * amplitude


def make_rope(
    parameters: Mapping[str, Any], head_dim: int, max_position_embeddings: int, capacity: int
) -> Rope:
    """The rotary embedding for `rope_parameters` of a config.

    capacity: most positions that will be used; LongRoPE chooses its factors by it.
    Raises ValueError with the reason if the rule is unknown or a number is missing.
    """
    rule = str(parameters.get("rope_type", parameters.get("type", "default")))
    if rule not in RULES:
        raise ValueError(f"rope_type {rule!r} is not supported (supported: {', '.join(RULES)})")
    rotary_dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    try:
        base = 1.0 / float(parameters["rope_theta"]) ** (np.arange(0, rotary_dim, 2) / rotary_dim)
        if rule == "longrope":
            return _longrope(parameters, base, max_position_embeddings, capacity)
        if rule == "yarn":
            return _yarn(parameters, base, max_position_embeddings)
        if rule == "linear":
            base = base / float(parameters["factor"])
        elif rule == "gguf_factors":
            base = base / np.asarray(parameters["factors"], np.float64)
        elif rule == "llama3":
            base = _llama3(parameters, base)
    except KeyError as error:
        raise ValueError(
            f"rope_type {rule!r} needs {error.args[0]!r} in rope_parameters"
        ) from error
    return Rope(tuple(base.tolist()))


def _llama3(parameters: Mapping[str, Any], inv_freq: Float64Array) -> Float64Array:
    factor = float(parameters["factor"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    original = float(parameters["original_max_position_embeddings"])
    turns = original * inv_freq / (2 * math.pi)  # full rotations over the original context
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - smooth) * inv_freq / factor + smooth * inv_freq


def _yarn(parameters: Mapping[str, Any], inv_freq: Float64Array, max_positions: int) -> Rope:
    original = float(parameters["original_max_position_embeddings"])
    factor = float(parameters.get("factor") or max_positions / original)
    theta, rotary_dim = float(parameters["rope_theta"]), 2 * len(inv_freq)

    def dimension_of(rotations: float) -> float:
        log = math.log(original / (rotations * 2 * math.pi))
        return rotary_dim * log / (2 * math.log(theta))

    low = dimension_of(float(parameters.get("beta_fast") or 32))
    high = dimension_of(float(parameters.get("beta_slow") or 1))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    ramp = np.clip((np.arange(len(inv_freq)) - low) / max(high - low, 0.001), 0.0, 1.0)
    stretched = inv_freq / factor * ramp + inv_freq * (1 - ramp)
    return Rope(tuple(stretched.tolist()), _yarn_amplitude(parameters, factor))


def _yarn_amplitude(parameters: Mapping[str, Any], factor: float) -> float:
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    mscale, mscale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return scale(mscale) / scale(mscale_all) if mscale and mscale_all else scale(1.0)


def _longrope(
    parameters: Mapping[str, Any], inv_freq: Float64Array, max_positions: int, capacity: int
) -> Rope:
    original = int(parameters["original_max_position_embeddings"])
    if capacity > original:
        raise ValueError(
            f"LongRoPE changes its frequencies beyond {original} positions, so no cache of "
            f"{capacity} is exact; build with a capacity of at most {original}"
        )
    factor = float(parameters.get("factor") or max_positions / original)
    amplitude = parameters.get("attention_factor")
    if amplitude is None:
        amplitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short = inv_freq / np.asarray(parameters["short_factor"], np.float64)
    return Rope(tuple(short.tolist()), float(amplitude), original)
