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

    def guess(self, count: int, min_match: int = 1) -> list[int]:
        """The `count` tokens that followed the longest match, or [] if it has < min_match tokens.

        Behind the end of the text the guess goes on with what it guessed: a text that repeats a
        period is guessed to repeat it.
        """
        length, place = self._found()
        if length < max(min_match, 1):
            return []
        text = self._text
        guess = text[place : place + count]
        period = len(text) - place
        while len(guess) < count:
            guess.append(guess[-period])
        return guess

    def following(self, number: int) -> int:
        """The token at a place of `guess`, from 0. There has to be a match."""
        text, place = self._text, self._found()[1]
        while place + number >= len(text):
            number -= len(text) - place
        return text[place + number]

    def match_length(self) -> int:
        """Tokens at the end of the text that stand in front of what `guess` goes on with, at most
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
