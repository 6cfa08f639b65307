"""How much each source of guesses says for the token that it guesses: numbers of an adapter.

What may come next has a score. A mask's draft has the mask's logit and pair score, times
`mask_scale`; text and table add bonuses to what they guess, larger the surer they are. The softmax
of the scores says how sure the best is. Without a mask the rest of the vocabulary has the score 0,
and text and table have other bonuses. All are fitted by logistic regression, so that what is said
to be right in 60 % of the cases is (`bita.tuning.bonus_fit`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.tensors import Float32Array

BONUS_TENSOR = "guess_bonuses"
MAX_MATCH = 12  # tokens of a match in the text that are counted
TABLE_STEPS = 11  # tens of the table's percent, 0 to 100
MAX_BONUS = 50.0
ABSENT = 1.0  # by which a guess that the mask does not draft scores less than its last draft
SIZE = 2 * (MAX_MATCH + TABLE_STEPS + 1)


@dataclass(frozen=True)
class Bonuses:
    """text_…: by the length of the text's match, 1 to MAX_MATCH. table_…: by tens of percent.

    agree_alone: added where text and table guess the same, without a mask.
    """

    mask_scale: float
    text_beside: tuple[float, ...]
    table_beside: tuple[float, ...]
    text_alone: tuple[float, ...]
    table_alone: tuple[float, ...]
    agree_alone: float

    def array(self) -> Float32Array:
        """[SIZE], in the order of the fields."""
        parts = (
            *(self.mask_scale, *self.text_beside, *self.table_beside),
            *(*self.text_alone, *self.table_alone, self.agree_alone),
        )
        return np.array(parts, np.float32)

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> "Bonuses":
        """The bonuses in an array that `array` gave."""
        scale, *rest = np.asarray(array, np.float32).tolist()
        ends = np.cumsum([MAX_MATCH, TABLE_STEPS, MAX_MATCH, TABLE_STEPS])
        beside, table, alone, table_alone = (
            tuple(rest[start:end]) for start, end in zip((0, *ends), ends, strict=False)
        )
        return cls(scale, beside, table, alone, table_alone, rest[-1])


# Of the default model's first adapter with LoRA (docs/LOG.md, 2026-11-29): for adapters that have
# none of their own.
DEFAULT_BONUSES = Bonuses(
    mask_scale=0.63,
    text_beside=(1.5, 2.5, 2.5, 2.5, 2.65, 2.8, 3.4, 3.4, 3.4, 3.4, 4.6, 5.0),
    table_beside=(0.35, 0.45, 0.75, 0.95, 0.95, 1.25, 1.7, 1.95, 2.75, 4.0, 5.5),
    text_alone=(-1.3, 0.05, 0.45, 0.6, 1.1, 1.2, 1.65, 1.65, 1.7, 1.75, 2.3, 3.6),
    table_alone=(-2.0, -1.75, -1.5, -1.3, -1.1, -0.7, -0.5, -0.1, 0.45, 1.8, 2.8),
    agree_alone=1.8,
)


def bonus_faults(array: npt.NDArray[Any]) -> list[str]:
    """Why an array is none of bonuses; empty if it is one."""
    if array.shape != (SIZE,):
        return [f"{BONUS_TENSOR} is {list(array.shape)}, not [{SIZE}]"]
    if not np.isfinite(array).all() or np.abs(array).max() > MAX_BONUS or array[0] <= 0:
        return [
            f"{BONUS_TENSOR} has numbers beyond {MAX_BONUS:g}, or a scale of masks that is not "
            "above 0"
        ]
    return []
