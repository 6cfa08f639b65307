"""How sure a guess is, as a state of the decoder: a level by the shares of its first tokens."""

from bisect import bisect_right

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
