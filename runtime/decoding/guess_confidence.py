"""The confidence level of a guess, a state of the decoder: computed from its first tokens."""

from bisect import bisect_right

_FIRST = (0.2, 0.35, 0.5, 0.65, 0.8, 0.92)  # thresholds for the share of the first token
_LOOKED_AT = 3  # beyond this many thresholds, the second token counts too
_NEXT, _LIKELY_NEXT = 0.5, 0.85  # thresholds for the share of the second token


def looks_further(first: float) -> bool:
    """Return whether the level depends on the second token, given the share of the first."""
    return first >= _FIRST[_LOOKED_AT - 1]


def level_of(first: float, second: float) -> int:
    """Return the level of a guess, 0 (no guess) to 12, from the shares of its first two tokens.

    A share is the estimated probability that a token is right if those before it are.
    """
    place = bisect_right(_FIRST, first)
    if place < _LOOKED_AT:
        return place + (first > 0)
    found = _LOOKED_AT + 1 + 2 * (place - _LOOKED_AT) + (second >= _NEXT)
    return found + (place == len(_FIRST) and second >= _LIKELY_NEXT)
