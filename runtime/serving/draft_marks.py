"""Draft marks: the pieces of an answer's text say which of its tokens were drafts."""

from typing import Any

from bita.runtime.generation import Generation


class DraftMarks:
    """The draft marks of one answer. Call it once per piece, in order.

    The entries of a piece are its tokens; their joined texts are the piece. A token that completes
    no character has the text "". If a possible stop string holds back part of a token, the token
    has an entry in both pieces.
    """

    def __init__(self) -> None:
        self._num_reported = 0  # tokens whose text has been reported completely
        self._num_shown = 0  # characters of the pieces so far
        self._has_part = False  # whether part of the next token has been reported

    def of_piece(self, text: str, generation: Generation) -> dict[str, Any]:
        """Return the `bita` object of a piece. The generation may already be further ahead."""
        return {"tokens": self._tokens(text, generation)}

    def of_end(self, text: str, generation: Generation) -> dict[str, Any]:
        """Return the `bita` object of a finished answer's last piece, which includes figures."""
        tokens = self._tokens(text, generation)
        begin = self._num_reported + self._has_part
        rest = generation.were_drafts[begin : generation.num_text_tokens]
        tokens += [_entry("", was_draft) for was_draft in rest]
        return {"tokens": tokens, "figures": figures(generation)}

    def _tokens(self, text: str, generation: Generation) -> list[dict[str, Any]]:
        begin = self._num_shown
        self._num_shown = end = begin + len(text)
        ends, were_drafts = generation.text_ends, generation.were_drafts
        entries: list[dict[str, Any]] = []
        place = begin
        while place < end and self._num_reported < generation.num_text_tokens:
            until = ends[self._num_reported]
            part = text[place - begin : until - begin]
            entries.append(_entry(part, were_drafts[self._num_reported]))
            place += len(part)
            self._has_part = until > end
            if self._has_part:
                return entries
            self._num_reported += 1
        if place < end:  # an incomplete character at the end, which belongs to the last token
            rest = text[place - begin :]
            if entries:
                entries[-1]["text"] += rest
            else:
                entries.append(_entry(rest, 0))
        return entries


def figures(generation: Generation) -> dict[str, Any]:
    """Return the figures of an answer's steps; prefill gives the first token, before them."""
    num_tokens, num_steps = len(generation.token_ids), generation.num_steps
    seconds, decoded = generation.step_seconds, max(num_tokens - 1, 0)
    return {
        "tokens": num_tokens,
        "drafted": sum(generation.were_drafts),
        "steps": num_steps,
        "seconds": round(seconds, 6),
        "tokens_per_second": round(decoded / seconds, 3) if seconds else 0.0,
        "tokens_per_step": round(decoded / num_steps, 4) if num_steps else 0.0,
    }


def _entry(text: str, was_draft: int) -> dict[str, Any]:
    return {"text": text, "drafted": bool(was_draft)}
