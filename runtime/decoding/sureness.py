"""How surely a guess is right, by where it comes from.

Each source adds a bonus to the score of the token that it guesses; the softmax of the scores says
how surely. Of text and table alone the rest of the vocabulary has the score 0. Bonuses were fitted
by logistic regression (docs/LOG.md, 2026-11-29), and are right as often as they say on text that
they were not fitted on.
"""

from bisect import bisect_right

# By the length of the text's match, 0 to 12, and by tens of the table's percent, 0 to 100.
TEXT_ALONE = (0.0, -1.3, 0.05, 0.45, 0.6, 1.1, 1.2, 1.65, 1.65, 1.7, 1.75, 2.3, 3.6)
TABLE_ALONE = (-2.0, -1.75, -1.5, -1.3, -1.1, -0.7, -0.5, -0.1, 0.45, 1.8, 2.8)
AGREE_ALONE = 1.8  # more, where text and table say the same
# The same beside a mask's drafts.
TEXT_BESIDE = (0.0, 1.5, 2.5, 2.5, 2.5, 2.65, 2.8, 3.4, 3.4, 3.4, 3.4, 4.6, 5.0)
TABLE_BESIDE = (0.35, 0.45, 0.75, 0.95, 0.95, 1.25, 1.7, 1.95, 2.75, 4.0, 5.5)

_FIRST = (0.2, 0.35, 0.5, 0.65, 0.8, 0.92)  # shares of the first token, for levels
_LOOKED_AT = 3  # of them: above, the second token counts too
_NEXT, _SURE_NEXT = 0.5, 0.85  # its shares


def looks_further(first: float) -> bool:
    """Whether the level depends on the second token, by the share of the first."""
    return first >= _FIRST[_LOOKED_AT - 1]


def level_of(first: float, second: float) -> int:
    """A state of the decoder, 0 to 12, by how surely the first token of a guess is right, and the
    second one after it; 0 where nothing is known.
    """
    place = bisect_right(_FIRST, first)
    if place < _LOOKED_AT:
        return place + (first > 0)
    found = _LOOKED_AT + 1 + 2 * (place - _LOOKED_AT) + (second >= _NEXT)
    return found + (place == len(_FIRST) and second >= _SURE_NEXT)
