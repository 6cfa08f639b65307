"""Scores that an adapter gives to guesses, by their source: mask, text or table.

Each candidate for the next token has a score. A draft of a mask scores the mask's logit plus its
pair score, times `mask_scale`. Text and table each add a bonus to the token that they guess, which
grows with their confidence. The softmax of the scores is the confidence in the best candidate.
Without a mask, the rest of the vocabulary has the score 0, and text and table have separate
bonuses. All are fitted by logistic regression, so that of the guesses with a confidence of 60 %,
60 % are right (`bita.tuning.bonus_fit`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.tensors import Float32Array

BONUS_TENSOR = "guess_bonuses"
MAX_MATCH = 12  # longest match in the text that has its own bonus, in tokens
TABLE_STEPS = 11  # bonuses for 0, 10, ... 100 percent of the table
MAX_BONUS = 50.0
ABSENT = 1.0  # a guess that the mask does not draft scores this much less than its last draft
SIZE = 2 * (MAX_MATCH + TABLE_STEPS + 1)


@dataclass(frozen=True)
class Bonuses:
    """Bonuses of an adapter."""

    mask_scale: float  # factor of a mask's logit plus pair score
    text_beside: tuple[float, ...]  # with a mask: by length of the match in the text, from 1
    table_beside: tuple[float, ...]  # with a mask: by tens of the table's percent, from 0
    text_alone: tuple[float, ...]  # without a mask: by length of the match in the text, from 1
    table_alone: tuple[float, ...]  # without a mask: by tens of the table's percent, from 0
    agree_alone: float  # without a mask: added if text and table guess the same token

    def array(self) -> Float32Array:
        """Return the fields in their order as one array [SIZE]."""
        parts = (
            *(self.mask_scale, *self.text_beside, *self.table_beside),
            *(*self.text_alone, *self.table_alone, self.agree_alone),
        )
        return np.array(parts, np.float32)

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> "Bonuses":
        """Return the bonuses in an array as `array` returns it."""
        scale, *rest = np.asarray(array, np.float32).tolist()
        ends = np.cumsum([MAX_MATCH, TABLE_STEPS, MAX_MATCH, TABLE_STEPS])
        text, table, text_alone, table_alone = (
            tuple(rest[start:end]) for start, end in zip((0, *ends), ends, strict=False)
        )
        return cls(scale, text, table, text_alone, table_alone, rest[-1])


# Fitted to the default model's first adapter with LoRA (docs/LOG.md, 2026-11-29); used for adapters
# without bonuses of their own.
DEFAULT_BONUSES = Bonuses(
    mask_scale=0.63,
    text_beside=(1.5, 2.5, 2.5, 2.5, 2.65, 2.8, 3.4, 3.4, 3.4, 3.4, 4.6, 5.0),
    table_beside=(0.35, 0.45, 0.75, 0.95, 0.95, 1.25, 1.7, 1.95, 2.75, 4.0, 5.5),
    text_alone=(-1.3, 0.05, 0.45, 0.6, 1.1, 1.2, 1.65, 1.65, 1.7, 1.75, 2.3, 3.6),
    table_alone=(-2.0, -1.75, -1.5, -1.3, -1.1, -0.7, -0.5, -0.1, 0.45, 1.8, 2.8),
    agree_alone=1.8,
)


def bonus_faults(array: npt.NDArray[Any]) -> list[str]:
    """Return why an array does not hold valid bonuses; empty if it does."""
    if array.shape != (SIZE,):
        return [f"{BONUS_TENSOR} is {list(array.shape)}, not [{SIZE}]"]
    if not np.isfinite(array).all() or np.abs(array).max() > MAX_BONUS or array[0] <= 0:
        return [
            f"{BONUS_TENSOR} has numbers beyond {MAX_BONUS:g}, or a scale of masks that is not "
            "above 0"
        ]
    return []
