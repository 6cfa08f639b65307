"""Guesses of what follows a text: from the text itself, or from what the model often says.

An adapter may have a table of continuations (`bita.continuations`). With one, both sources are
asked, the surer one guesses, and `match_length` stands for how sure it is: a state of the decoder,
whose tree calibration chooses by what such guesses were worth.
"""

from collections.abc import Sequence

from bita.continuations import LONGEST_RUN, Continuations
from bita.runtime.decoding.ngrams import NgramIndex
from bita.tree import MAX_MATCH

# Expected right tokens of a guess from the table, in percent, from which on it is as good as a
# match of 1, 2, ... tokens. Measured on the default model: docs/LOG.md.
_EXPECTED = (1, 35, 55, 75, 100, 130, 160, 190)
_GOES_ON = 50  # percent of the first token, below which the next one is not looked up
_DEEPEST = 3  # tokens of a guess whose sureness counts


class Guesses(NgramIndex):
    """An index of a text, and a table of continuations beside it.

    A match of two tokens or more in the text counts as one longer, so that there is a place for
    guesses from the table that are better than a match of one and worse than one of two.
    """

    def __init__(self, table: Continuations) -> None:
        super().__init__()
        self._table = table
        self._known: tuple[int, list[int]] | None = None

    def extend(self, token_ids: Sequence[int]) -> None:
        super().extend(token_ids)
        self._known = None

    def match_length(self) -> int:
        return max(self._own_length(), self._from_table()[0])

    def guess(self, count: int, min_match: int = 1) -> list[int]:
        length, tokens = self._from_table()
        if length <= (own := self._own_length()):
            return super().guess(count) if own >= max(min_match, 1) else []
        if length < max(min_match, 1):
            return []
        guess = tokens[:count]
        while len(guess) < count:
            run = [*self._text[-LONGEST_RUN:], *guess][-LONGEST_RUN:]
            guess.append(self._table.find(run)[0])
        return guess

    def _own_length(self) -> int:
        length = super().match_length()
        return length if length < 2 else min(length + 1, MAX_MATCH)

    def _from_table(self) -> tuple[int, list[int]]:
        """How long a match in the text would be as good, and the tokens that were looked up."""
        if self._known is None:
            self._known = self._look_up_table()
        return self._known

    def _look_up_table(self) -> tuple[int, list[int]]:
        run, expected, sure = self._text[-LONGEST_RUN:], 0.0, 1.0
        tokens: list[int] = []
        while len(tokens) < _DEEPEST:
            token, percent = self._table.find(run)
            sure *= percent / 100
            expected += 100 * sure
            if percent:
                tokens.append(token)
            if percent < _GOES_ON:
                break
            run = [*run[1 - LONGEST_RUN :], token]
        return sum(expected >= least for least in _EXPECTED), tokens


def new_index(table: Continuations | None) -> NgramIndex:
    """An index for a new text, with an adapter's table if it has one."""
    return NgramIndex() if table is None else Guesses(table)
