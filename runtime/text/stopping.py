"""Decides when a generation ends, and exactly which tokens and which text belong to it.

A step may commit several tokens at once, so the end can be inside an accepted path. The rule
processes one token at a time. What it keeps does not depend on how steps divide the tokens, so
speculative and plain decoding stop at the same token with the same text.
"""

from array import array
from collections.abc import Collection, Sequence
from typing import Literal

from bita.errors import PromptError, raise_faults
from bita.json_values import shown
from bita.runtime.text.codec import IncrementalText, TextCodec

FinishReason = Literal["eos", "stop", "grammar", "length", "capacity", "timeout", "cancelled"]

MAX_STOP_STRINGS = 16  # each is searched for with every token
MAX_STOP_CHARACTERS = 256  # up to this much text may have to be held back


class StopStrings:
    """Finds the first of several stop strings in a text that arrives in pieces.

    The string that ends first counts, and the longest of those that end at the same character. The
    result does not depend on the division into pieces. A piece costs one search per stop string.
    """

    def __init__(self, stops: Sequence[str] = (), marked: Sequence[str] = ()) -> None:
        """Start an empty text.

        Args:
            stops: Strings to stop at.
            marked: Further strings to stop at, which are not validated.

        Raises:
            PromptError: If a stop string is empty, too long or not text; lists all faults.
        """
        raise_faults(PromptError, "stop strings", stop_faults(stops))
        self.found: str | None = None  # the stop string that ended the text
        self._stops = tuple(dict.fromkeys((*stops, *marked)))
        self._beginnings = {stop[:end] for stop in self._stops for end in range(1, len(stop))}
        self._longest = max(map(len, self._beginnings), default=0)
        self._held = ""  # longest suffix of the text that may begin a stop string

    def push(self, piece: str) -> str:
        """Add text and return the new part of the text that is certainly shown.

        Once a stop string is complete, `found` is set: the text before it is returned, and
        everything after is dropped.
        """
        if not self._stops:
            return piece
        if self.found is not None:
            return ""
        text = self._held + piece
        stop_start = self._find(text)
        shown = len(text) - self._num_held(text) if stop_start is None else stop_start
        self._held = text[shown:] if self.found is None else ""
        return text[:shown]

    def flush(self) -> str:
        """End the text and return the text that was held back, which began no stop string."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str) -> int | None:
        """Return the start of the stop string that ends first, and set `found`."""
        hits = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := text.find(stop)) >= 0
        ]
        if not hits:
            return None
        _, start, self.found = min(hits)
        return start

    def _num_held(self, text: str) -> int:
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0


class SpecialMarks:
    """Represents the special tokens in stop strings by marks: characters that text never contains.

    Special tokens are not shown, so a stop string such as "\\n<|end|>" would never be found.
    Therefore each special token in a stop string gets a mark, which replaces the token in the
    searched text and its string in `stops`. `shown` removes the marks from text that is shown.
    """

    def __init__(self, stops: Sequence[str], codec: TextCodec) -> None:
        strings = {found for stop in stops for found in codec.special_pattern.findall(stop)}
        # lone surrogates never occur in decoded UTF-8
        mark_of = {string: chr(0xD800 + i) for i, string in enumerate(sorted(strings))}
        self.by_id = {i: mark_of[s] for i, s in codec.hidden_tokens.items() if s in mark_of}
        self.stops = [
            codec.special_pattern.sub(lambda found: mark_of[found[0]], stop)
            for stop in stops
            if codec.special_pattern.search(stop)
        ]
        self._to_nothing = dict.fromkeys(map(ord, mark_of.values()))

    def shown(self, text: str) -> str:
        """Return the text without marks."""
        return text.translate(self._to_nothing)


class StopRule:
    """Decides token by token which part of a generation counts.

    A generation ends at the first of these, checked in this order for each token: an EOS or stop
    token (kept in `token_ids`, not shown), the token that completes a stop string (kept; the text
    is cut before the string), or the token limit. A special token completes a stop string that ends
    with its own string; if it is an EOS or stop token, the text is still cut before the stop
    string. Tokens fed after the end are ignored, so a whole accepted path can be fed at once; the
    growth of `token_ids` is the number of tokens kept. Without stop strings a token costs about 1
    µs.
    """

    def __init__(
        self,
        text: IncrementalText,
        eos_ids: Collection[int],
        max_new_tokens: int,
        stops: Sequence[str] = (),
        stop_token_ids: Collection[int] = (),
    ) -> None:
        """Start a generation.

        Args:
            text: An unused text, of which the rule takes ownership.
            eos_ids: EOS tokens. Empty to continue after them.
            max_new_tokens: Limit of tokens, at least 1.
            stops: Stop strings.
            stop_token_ids: Further tokens that end the answer; kept and not shown, like EOS.

        Raises:
            PromptError: If the limit is below 1 or a stop string is invalid.
        """
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise PromptError(f"max_new_tokens is {max_new_tokens!r}; pass a positive integer")
        self.token_ids: list[int] = []
        self.text_ends = array("q")  # end of each token's text within the text of all tokens
        self.finish_reason: FinishReason | None = None
        self.ended_at_token = False  # True: the last token is EOS, a stop or a special token
        self._text = text
        self._eos_ids = frozenset(eos_ids)
        self._stop_token_ids = frozenset(stop_token_ids)
        self._max_new_tokens = max_new_tokens
        raise_faults(PromptError, "stop strings", stop_faults(stops))
        marks = SpecialMarks(stops, text.codec) if stops else None
        self._marks = marks if marks and marks.stops else None
        self._stops = StopStrings(stops, self._marks.stops if self._marks else ())
        self._ready: list[str] = []

    def feed(self, token_id: int) -> None:
        """Process the next token; sets `finish_reason` if it is the last one."""
        if self.finish_reason is not None:
            return
        self.token_ids.append(token_id)
        self.text_ends.append(self.text_ends[-1] if self.text_ends else 0)
        if self._marks is not None and (mark := self._marks.by_id.get(token_id)):
            self._feed_mark(token_id, mark)
            if self.finish_reason is not None:
                return
        if token_id in self._eos_ids or token_id in self._stop_token_ids:
            self.finish_reason = "eos" if token_id in self._eos_ids else "stop"
            self.ended_at_token = True
            return
        if piece := self._text.push((token_id,)):
            self.text_ends[-1] += len(piece)
            self._ready.append(self._stops.push(piece))
        if self._stops.found is not None:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self._max_new_tokens:
            self.finish_reason = "length"

    def _feed_mark(self, token_id: int, mark: str) -> None:
        """Look for stop strings that this special token completes.

        An EOS token that is itself a stop string ends the answer as EOS.
        """
        self._ready.append(self._stops.push(mark))
        found = self._stops.found
        if found is not None and not (found == mark and token_id in self._eos_ids):
            self.finish_reason = "stop"
            self.ended_at_token = True

    def take_text(self) -> str:
        """Return new text that is safe to show: whole characters that no stop string can remove."""
        ready = "".join(self._ready)
        self._ready.clear()
        return ready if self._marks is None else self._marks.shown(ready)

    def close(self) -> str:
        """End the text and return the remaining part. Later calls return "".

        The texts returned add up to the decoded `token_ids` without a final EOS, cut before the
        stop string if there is one.
        """
        self._ready.append(self._stops.push(self._text.flush()) + self._stops.flush())
        return self.take_text()


def stop_faults(stops: Sequence[str]) -> list[str]:
    """Return why these are not valid stop strings; [] if they are."""
    if isinstance(stops, str) or not isinstance(stops, Sequence):
        return [f"{shown(stops)} is not a list of strings; pass [{shown(stops)}]"]
    if len(stops) > MAX_STOP_STRINGS:
        return [f"there are {len(stops)}; give at most {MAX_STOP_STRINGS}"]
    faults = []
    for index, stop in enumerate(stops):
        if not isinstance(stop, str):
            faults.append(f"number {index} is {shown(stop)}, not a string")
        elif not stop:
            faults.append(f"number {index} is empty, which every text contains; leave it out")
        elif len(stop) > MAX_STOP_CHARACTERS:
            faults.append(
                f"number {index} has {len(stop)} characters; use at most {MAX_STOP_CHARACTERS}"
            )
        elif any("\ud800" <= character <= "\udfff" for character in stop):
            faults.append(f"number {index} holds half a surrogate pair, which no text contains")
    return faults
