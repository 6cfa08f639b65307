"""Drafts from the text so far: the tokens that followed the last occurrence of its ending.

Prompt lookup (Saxena 2023; transformers' `prompt_lookup_num_tokens`), using the latest occurrence
of the longest match. It needs neither an adapter nor mask rows.
"""

from collections.abc import Sequence

from bita.bonuses import MAX_MATCH

LONGEST = 4  # tokens of the longest n-gram that is looked up


class NgramIndex:
    """The position after the last occurrence of each run of 1 to 4 tokens of a text.

    The cost per token does not depend on the text's length; memory is four dictionary entries per
    token.
    """

    def __init__(self) -> None:
        self._text: list[int] = []
        self._match: tuple[int, int] | None = None  # result of `_find`
        self._continued: list[dict[tuple[int, ...], int]] = [{} for _ in range(LONGEST)]

    def start(self, token_ids: Sequence[int]) -> None:
        """Replace the text."""
        self._text = []
        for places in self._continued:
            places.clear()
        self.extend(token_ids)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Add tokens to the end of the text."""
        self._match, text = None, self._text
        for token in token_ids:
            place = len(text)
            for length, places in enumerate(self._continued[:place], 1):
                places[tuple(text[place - length :])] = place
            text.append(token)

    def following(self, number: int) -> int:
        """Return the token `number` positions, counted from 0, after the longest match.

        Beyond the end of the text it continues with its own guesses, so a periodic text is
        continued periodically. There must be a match.
        """
        text, place = self._text, self._find()[1]
        while place + number >= len(text):
            number -= len(text) - place
        return text[place + number]

    def match_length(self) -> int:
        """Return the length of the match at the end of the text, at most MAX_MATCH."""
        return self._find()[0]

    def _find(self) -> tuple[int, int]:
        """Return the match's length, and the position after its last occurrence."""
        if self._match is None:
            self._match = self._look_up()
        return self._match

    def _look_up(self) -> tuple[int, int]:
        text, end = self._text, len(self._text)
        for length in range(min(LONGEST, end), 0, -1):
            place = self._continued[length - 1].get(tuple(text[end - length :]))
            if place is not None:
                while length < min(MAX_MATCH, place) and (
                    text[place - length - 1] == text[end - length - 1]
                ):
                    length += 1
                return length, place
        return 0, 0
