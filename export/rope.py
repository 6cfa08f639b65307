"""Rotary position embeddings: inverse frequencies of each scaling rule, and the cos/sin tables.

The formulas are RoFormer (default), position interpolation (linear), Llama 3.1 (llama3), YaRN
(yarn) and LongRoPE (longrope); names and defaults are those of `rope_parameters` in transformers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bita.json_values import MAX_FLOAT, Fields, shown
from bita.tensors import Float32Array, Float64Array

# Keys that each rule needs besides `rope_theta`. "gguf_factors" is for GGUF files with a table of
# factors.
RULES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        *("factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    ),
    "yarn": ("original_max_position_embeddings",),
    "longrope": ("short_factor", "original_max_position_embeddings"),
    "gguf_factors": ("factors",),
}


@dataclass(frozen=True)
class Rope:
    """A rotary embedding: the angle of dimension i at position p is p * inv_freq[i]."""

    inv_freq: tuple[float, ...]  # rotary_dim / 2 numbers, in radians per position
    amplitude: float = 1.0  # factor on cos and sin; 1.0 unless YaRN or LongRoPE stretch the context
    max_positions: int | None = None  # beyond it frequencies differ (LongRoPE); None: no bound

    def tables(self, num_positions: int) -> tuple[Float32Array, ...]:
        """Return cos and sin, each [num_positions, rotary_dim / 2]."""
        # The products are float32, as in the reference implementations: at position 8000 the
        # rounding of the angle is visible in the logits, and the weights were trained with it.
        angles = np.outer(
            np.arange(num_positions, dtype=np.float32), np.asarray(self.inv_freq, np.float32)
        )
        amplitude = np.float32(self.amplitude)
        return np.cos(angles) * amplitude, np.sin(angles) * amplitude


def make_rope(
    parameters: Mapping[str, Any], head_dim: int, max_position_embeddings: int, capacity: int
) -> Rope:
    """Return the rotary embedding for the `rope_parameters` of a config.

    Args:
        parameters: The `rope_parameters` of a layer.
        head_dim: The size of a head.
        max_position_embeddings: Positions of the model.
        capacity: Positions that will be used at most; LongRoPE chooses its factors by it.

    Raises:
        ValueError: with the reason, if the rule is unknown, a number is missing or of the wrong
            type, or the frequencies are not finite.
    """
    rule = parameters.get("rope_type", parameters.get("type", "default"))
    if not isinstance(rule, str) or rule not in RULES:
        raise ValueError(
            f"rope_type {shown(rule)} is not supported (supported: {', '.join(RULES)})"
        )
    for key in ("rope_theta", *RULES[rule]):
        if key not in parameters:
            raise ValueError(f"rope_type {rule!r} needs {key!r} in rope_parameters")
    fields = Fields(parameters, "rope_parameters.")
    part = fields.number("partial_rotary_factor", 1.0, 0.0, 1.0)
    theta = fields.number("rope_theta", least=1e-30)
    rotary_dim = int(head_dim * part)
    if fields.faults:
        raise ValueError("; ".join(fields.faults))
    if rotary_dim < 2 or rotary_dim % 2:
        raise ValueError(
            f"partial_rotary_factor {part:g} rotates {rotary_dim} of {head_dim} values of a head; "
            "this number must be even and at least 2"
        )
    numbers = _Numbers(fields, theta, max_position_embeddings, capacity)
    try:
        with np.errstate(all="ignore"):  # frequencies that are not finite are refused below
            base = 1.0 / theta ** (np.arange(0, rotary_dim, 2) / rotary_dim)
            rope = _by_rule(rule, numbers, base)
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"rope_type {rule!r} gives no frequencies ({error})") from error
    values = (*rope.inv_freq, rope.amplitude)
    if not all(abs(value) <= MAX_FLOAT for value in values):  # false for NaN
        raise ValueError(f"rope_type {rule!r} gives frequencies that are not finite")
    return rope


@dataclass(frozen=True)
class _Numbers:
    """The inputs of the rules."""

    fields: Fields  # of `rope_parameters`
    theta: float
    max_positions: int
    capacity: int

    def check(self) -> None:
        if self.fields.faults:
            raise ValueError("; ".join(self.fields.faults))

    def original(self) -> int:
        return self.fields.whole("original_max_position_embeddings", least=1)

    def factors(self, key: str, count: int) -> Float64Array:
        """Return the list `key`, which must have a factor for each of `count` frequencies."""
        factors = self.fields.numbers(key)
        if not self.fields.faults and len(factors) != count:
            self.fields.faults.append(
                f"rope_parameters.{key} has {len(factors)} factors for {count} frequencies"
            )
        self.check()
        return np.asarray(factors, np.float64)


def _by_rule(rule: str, numbers: _Numbers, base: Float64Array) -> Rope:
    fields = numbers.fields
    if rule == "longrope":
        return _longrope(numbers, base)
    if rule == "yarn":
        return _yarn(numbers, base)
    if rule == "linear":
        factor = fields.number("factor")
        numbers.check()
        base = base / np.float64(factor)
    elif rule == "gguf_factors":
        base = base / numbers.factors("factors", len(base))
    elif rule == "llama3":
        base = _llama3(numbers, base)
    return Rope(tuple(base.tolist()))


def _llama3(numbers: _Numbers, inv_freq: Float64Array) -> Float64Array:
    fields = numbers.fields
    factor = fields.number("factor")
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    original = numbers.original()
    if not fields.faults and low >= high:
        fields.faults.append(
            f"rope_parameters.low_freq_factor {low:g} is not less than high_freq_factor {high:g}"
        )
    numbers.check()
    rotations = original * inv_freq / (2 * math.pi)  # full ones over the original context
    smooth = np.clip((rotations - low) / (high - low), 0.0, 1.0)
    return (1 - smooth) * inv_freq / factor + smooth * inv_freq


def _yarn(numbers: _Numbers, inv_freq: Float64Array) -> Rope:
    fields, original = numbers.fields, numbers.original()
    given = fields.number_or_null("factor")
    fast, slow = fields.number_or_null("beta_fast"), fields.number_or_null("beta_slow")
    truncates = fields.flag_or_null("truncate", True)
    numbers.check()
    factor = numbers.max_positions / original if given is None else given
    rotary_dim = 2 * len(inv_freq)

    def dimension_of(rotations: float) -> float:
        period = original / (rotations * 2 * math.pi)  # positions per radian
        if period <= 0 or numbers.theta == 1:
            raise ZeroDivisionError("no dimension has its number of rotations")
        return rotary_dim * math.log(period) / (2 * math.log(numbers.theta))

    low, high = dimension_of(fast or 32), dimension_of(slow or 1)
    if truncates:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    ramp = np.clip((np.arange(len(inv_freq)) - low) / (high - low or 0.001), 0.0, 1.0)
    stretched = inv_freq / factor * ramp + inv_freq * (1 - ramp)
    return Rope(tuple(stretched.tolist()), _yarn_amplitude(numbers, factor))


def _yarn_amplitude(numbers: _Numbers, factor: float) -> float:
    fields = numbers.fields
    given = fields.number_or_null("attention_factor")
    mscale, mscale_all = fields.number_or_null("mscale"), fields.number_or_null("mscale_all_dim")
    numbers.check()
    if given is not None:
        return given

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    return scale(mscale) / scale(mscale_all) if mscale and mscale_all else scale(1.0)


def _longrope(numbers: _Numbers, inv_freq: Float64Array) -> Rope:
    fields, original = numbers.fields, numbers.original()
    given, amplitude = fields.number_or_null("factor"), fields.number_or_null("attention_factor")
    short = inv_freq / numbers.factors("short_factor", len(inv_freq))
    if numbers.capacity > original:
        raise ValueError(
            f"LongRoPE changes its frequencies beyond {original} positions, so no cache of "
            f"{numbers.capacity} is exact; build with a capacity of at most {original}"
        )
    factor = numbers.max_positions / original if given is None else given
    if amplitude is None:
        stretch = 1.0 if factor <= 1 else 1 + math.log(factor) / math.log(original)
        amplitude = math.sqrt(max(stretch, 0.0))
    return Rope(tuple(short.tolist()), amplitude, original)
