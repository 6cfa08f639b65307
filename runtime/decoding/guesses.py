"""Guesses of what follows a text: from the text itself, from what the model often says, from masks.

An adapter may have a table of continuations (`bita.continuations`), and masks draft the next
tokens. All that is known of a place is put together (`bita.bonuses`), and `Guesses.level` says how
sure the first tokens are: a state of the decoder, whose tree calibration chooses by what such
guesses were worth.
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
    """What may follow a text, by the text itself, a table of continuations and the drafts of masks.

    What masks drafted belongs to the text's end: `extend` comes after it.
    """

    @property
    def from_masks(self) -> bool:
        """Whether a mask alone says the best first token."""
        ...

    @property
    def share(self) -> float:
        """How surely the best first token is right, 0 to 1; 0 where nothing is known."""
        ...

    def start(self, token_ids: Sequence[int]) -> None:
        """Forget the last text and begin with this one."""
        ...

    def extend(self, token_ids: Sequence[int]) -> None:
        """Add tokens to the end of the text; the masks' drafts may have changed."""
        ...

    def level(self) -> int:
        """How sure the first tokens are, 0 to MAX_LEVEL; 0 where nothing is known."""
        ...

    def candidates(self, count: int, min_level: int = 1) -> list[list[int]]:
        """What may stand at each of `count` places after the text, best first, if the best stand in
        front of it; fewer places, down to none, where nothing is known or the level is below
        `min_level`.
        """
        ...


def make_guesses(table: Continuations | None, bonuses: Bonuses, drafts: Drafts) -> Guesses:
    """Guesses by the library of native operators, in about 11 µs a step; without it, or where the
    adapter's pair scores are not float16, by Python, in 33 or more.
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
