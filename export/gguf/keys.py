"""The metadata under an architecture's prefix, and the keys that may stay unread."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bita.json_values import Fields, shown

PER_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
# Keys that affect nothing, whatever their values.
HARMLESS = (
    "tensor_data_layout",
    "attention.layer_norm_epsilon",  # for norms with a mean, which none of these models has
    "rope.scaling.finetuned",
    "rope.freq_base_swa",  # for layers with a window, which are refused where it is not read
)
# Keys of features that the graph does not have, and the values that turn them off.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_feed_forward_length": (0,),
    "expert_shared_feed_forward_length": (0,),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "attention.scale": (0,),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "logit_scale": (0, 1),
    "pooling_type": (0,),
    "rope.scaling.yarn_log_multiplier": (0,),
    "rope.scaling.yarn_attn_factor": (1,),
}


class Keys(Mapping[str, Any]):
    """The values by their names after `prefix.`; it remembers the keys that were read.

    A list of equal numbers, one for each layer, is replaced by the number.
    """

    def __init__(self, metadata: Mapping[str, Any], prefix: str) -> None:
        start = f"{prefix}."
        self._values = {k[len(start) :]: v for k, v in metadata.items() if k.startswith(start)}
        for key in PER_LAYER:
            value = self._values.get(key)
            if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
                self._values[key] = value[0]
        self._asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self._asked.add(key)
        return self._values[key]

    def __contains__(self, key: object) -> bool:
        self._asked.add(str(key))
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def unread(self) -> dict[str, Any]:
        """Return the values that were not read."""
        return {key: value for key, value in self._values.items() if key not in self._asked}


def add_unread_faults(
    fields: Fields, keys: Keys, num_positions: int, attention_scale: float
) -> None:
    """Add a fault for each key that was not read and is not known to be harmless.

    Args:
        fields: Gets the faults.
        keys: The metadata of the architecture.
        num_positions: Positions of the model; a sliding window of this width hides nothing.
        attention_scale: The factor that the graph applies to attention scores.
    """
    for key, value in keys.unread().items():
        is_wide = key == "attention.sliding_window" and _is_number(value) and value >= num_positions
        is_usual = key == "attention.scale" and _is_number(value) and _close(value, attention_scale)
        if key in HARMLESS or _is_neutral(key, value) or is_wide or is_usual:
            continue
        fields.faults.append(f"{fields.prefix}{key} = {shown(value)} is not supported")


def _is_neutral(key: str, value: Any) -> bool:
    return isinstance(value, (int, float)) and value in NEUTRAL.get(key, ())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _close(value: float, expected: float) -> bool:
    return abs(value - expected) <= 1e-6 * expected
