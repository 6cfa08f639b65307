"""Guess how a text continues, from the text itself, a table of continuations, and mask tokens.

An adapter may have a table of the model's frequent continuations (`bita.continuations`), and mask
tokens draft the next tokens. The sources for a position are combined (`bita.bonuses`).
`Guesses.level` rates the confidence in the first tokens. It is a state of the decoder: calibration
chooses its tree by how often such guesses were right.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from bita.bonuses import Bonuses
from bita.continuations import Continuations
from bita.errors import LibraryMissingError
from bita.runtime.decoding.drafting import Drafts
from bita.runtime.decoding.native_guesses import MAX_DRAFTS, NativeGuesses
from bita.runtime.decoding.plain_guesses import PlainGuesses
from bita.runtime.native.library import decoding_library


class Guesses(Protocol):
    """Guesses from the text itself, a table of continuations and the drafts of mask tokens.

    The drafts must belong to the end of the text: update them first, then call `extend`.
    """

    @property
    def from_masks(self) -> bool:
        """Whether only a mask token supports the best first token."""
        ...

    @property
    def share(self) -> float:
        """Estimated probability that the best first token is right; 0 without any guess."""
        ...

    def start(self, token_ids: Sequence[int]) -> None:
        """Replace the text."""
        ...

    def extend(self, token_ids: Sequence[int]) -> None:
        """Add tokens to the end of the text; the masks' drafts may have changed."""
        ...

    def level(self) -> int:
        """Return the confidence in the first tokens, 0 (no guess) to MAX_LEVEL."""
        ...

    def candidates(self, count: int, min_level: int = 1) -> list[list[int]]:
        """Return the candidates for each of the next `count` positions, best first.

        Each position assumes that the best candidates precede it. The list is shorter where the
        guesses end, and empty if the level is below `min_level`.
        """
        ...


def make_guesses(table: Continuations | None, bonuses: Bonuses, drafts: Drafts) -> Guesses:
    """Return guesses by the library of native operators, which take about 11 µs a step.

    Without the library, or if the adapter's pair scores are not float16, the guesses are made in
    Python and take at least 33 µs.
    """
    pairs = drafts.pairs
    tables = () if pairs is None else (pairs.left, pairs.right)
    fits = all(side.dtype == np.float16 and side.flags.c_contiguous for side in tables)
    if fits and drafts.ids.shape[1] <= MAX_DRAFTS:
        try:
            return NativeGuesses(table, bonuses, drafts, decoding_library())
        except LibraryMissingError:
            pass
    return PlainGuesses(table, bonuses, drafts)
