"""Guesses made in Python, for machines without the library of native operators."""

from collections.abc import Sequence
from itertools import takewhile
from math import exp
from typing import NamedTuple

from bita.bonuses import MAX_MATCH, Bonuses
from bita.continuations import LONGEST_RUN, Continuations
from bita.runtime.decoding.draft_order import order_drafts
from bita.runtime.decoding.drafting import Drafts
from bita.runtime.decoding.guess_confidence import level_of, looks_further
from bita.runtime.decoding.ngrams import NgramIndex

_SURE_MATCH = 8  # length of a match from which the table is not consulted


class _Place(NamedTuple):
    """The guess for one position after the text."""

    candidates: list[int]  # best first; empty: no guess
    share: float  # estimated probability that the first candidate is right
    follows_text: bool  # whether the first candidates so far are what followed the text's match
    from_masks: bool  # whether only a mask token supports the first candidate


_NOTHING = _Place([], 0.0, False, False)


class PlainGuesses:
    """Python implementation of `bita.runtime.decoding.guesses.Guesses`."""

    def __init__(self, table: Continuations | None, bonuses: Bonuses, drafts: Drafts) -> None:
        self._table = table
        self._drafts = drafts
        self._scale = bonuses.mask_scale
        self._text_beside = (0.0, *bonuses.text_beside)
        self._table_beside = bonuses.table_beside
        self._text_alone = (0.0, *map(exp, bonuses.text_alone))
        self._table_alone = tuple(map(exp, bonuses.table_alone))
        self._agree_alone = exp(bonuses.agree_alone)
        self._index = NgramIndex()
        self._last: list[int] = []  # tokens of the text
        self._places: list[_Place] = []

    @property
    def from_masks(self) -> bool:
        """Whether only a mask token supports the best first token."""
        return self._place(0).from_masks

    @property
    def share(self) -> float:
        """Estimated probability that the best first token is right; 0 without any guess."""
        return self._place(0).share

    def start(self, token_ids: Sequence[int]) -> None:
        """Replace the text."""
        self._index.start(())
        self._last = []
        self.extend(token_ids)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Add tokens to the end of the text; the masks' drafts may have changed."""
        self._index.extend(token_ids)
        self._last = [*self._last, *token_ids][-LONGEST_RUN:]
        self._places.clear()

    def level(self) -> int:
        """Return the confidence in the first tokens, 0 (no guess) to MAX_LEVEL."""
        first = self._place(0).share
        return level_of(first, self._place(1).share if looks_further(first) else 0.0)

    def candidates(self, count: int, min_level: int = 1) -> list[list[int]]:
        """Return the candidates for each of the next `count` positions, best first.

        Each position assumes that the best candidates precede it. The list is shorter where the
        guesses end, and empty if the level is below `min_level`.
        """
        if self.level() < max(min_level, 1):
            return []
        found = (self._place(number).candidates for number in range(count))
        return [*takewhile(bool, found)]

    def _place(self, number: int) -> _Place:
        """Return the guess for the position `number` tokens after the text.

        It assumes that the best candidates precede the position.
        """
        while len(self._places) <= number:
            self._places.append(self._next_place())
        return self._places[number]

    def _next_place(self) -> _Place:
        number = len(self._places)
        run, follows_text = self._last, True
        if not run:
            return _NOTHING
        if number:
            before = self._places[-1]
            if not before.candidates:
                return before
            follows_text = before.follows_text
            run = [*run, *(place.candidates[0] for place in self._places)]
        text = table = (0, 0)
        if follows_text and (length := self._index.match_length()):
            text = min(length + number, MAX_MATCH), self._index.following(number)
        if self._table is not None and text[0] < _SURE_MATCH:
            table = self._table.find(run)
        if number < self._drafts.num_masks:
            return self._with_mask(number, run[-1], text, table)
        return self._without_mask(text, table)

    def _with_mask(
        self, mask: int, before: int, text: tuple[int, int], table: tuple[int, int]
    ) -> _Place:
        bonuses: dict[int, float] = {}
        if text[0]:
            bonuses[text[1]] = self._text_beside[text[0]]
        if table[1]:
            bonuses[table[0]] = bonuses.get(table[0], 0.0) + self._table_beside[table[1] // 10]
        drafts = self._drafts
        ordered, share = order_drafts(
            *(drafts.ids[mask], drafts.logits[mask], drafts.pairs, self._scale),
            *(before, [*bonuses.items()]),
        )
        best = ordered[0]
        return _Place(ordered, share, bool(text[0]) and best == text[1], best not in bonuses)

    def _without_mask(self, text: tuple[int, int], table: tuple[int, int]) -> _Place:
        """Combine the guesses of text and table.

        text: length of the match, 0 for none, and the token.
        table: percent, 0 for none, and the token.
        """
        (length, token), (other, percent) = text, table
        weight = self._text_alone[length]
        other_weight = self._table_alone[percent // 10] if percent else 0.0
        if weight and other_weight and token == other:
            weight, other_weight = weight * other_weight * self._agree_alone, 0.0
        share = max(weight, other_weight) / (1 + weight + other_weight)
        if not other_weight:
            return _Place([token] if weight else [], share, weight > 0, False)
        if weight >= other_weight:
            return _Place([token, other], share, True, False)
        return _Place([other, token] if weight else [other], share, False, False)
