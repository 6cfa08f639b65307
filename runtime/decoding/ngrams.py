"""Drafts from the text so far: what followed the last time that it read as it does now.

Prompt lookup (Saxena 2023; transformers' `prompt_lookup_num_tokens`), with the longest match first
and the latest occurrence of it. It needs no adapter and no mask rows.
"""

from collections.abc import Sequence

from bita.bonuses import MAX_MATCH

LONGEST = 4  # tokens of an n-gram that is looked up


class NgramIndex:
    """Where each run of 1 to 4 tokens of a text was last continued.

    A token costs the same however long the text is; memory is four dictionary entries a token.
    """

    def __init__(self) -> None:
        self._text: list[int] = []
        self._match: tuple[int, int] | None = None  # as `_found` has it
        self._continued: list[dict[tuple[int, ...], int]] = [{} for _ in range(LONGEST)]

    def start(self, token_ids: Sequence[int]) -> None:
        """Forget the last text and begin with this one."""
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
        """The token that stands `number` places, from 0, after the longest match.

        After the end of the text it goes on with what it says itself: a text that repeats a period
        is taken to repeat it. There has to be a match.
        """
        text, place = self._text, self._found()[1]
        while place + number >= len(text):
            number -= len(text) - place
        return text[place + number]

    def match_length(self) -> int:
        """Tokens at the end of the text that stand in front of what `following` gives, at most
        MAX_MATCH.
        """
        return self._found()[0]

    def _found(self) -> tuple[int, int]:
        """Length of the match at the end of the text, and the place behind its last occurrence."""
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
