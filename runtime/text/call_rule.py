"""Detects when an unconstrained answer becomes a call, which a grammar then constrains."""

from dataclasses import dataclass

from bita.runtime.text.codec import TextCodec
from bita.runtime.text.grammar import Grammar
from bita.runtime.text.reasoning import Reasoning


@dataclass(frozen=True)
class CallRule:
    """Detection and grammar of calls in an otherwise unconstrained answer."""

    trigger: str  # text with which a call begins
    at_start: bool  # whether the trigger only counts at the start of the answer
    grammar: Grammar  # of the text after the trigger, to the end of the call
    may_repeat: bool  # whether the answer continues freely after a call; False: the call ends it
    reasoning: Reasoning | None = None  # marks of thinking, which contains no calls; None: none


class CallWatch:
    """Finds the trigger in the tokens of an answer."""

    def __init__(self, rule: CallRule, codec: TextCodec, shown_ids: frozenset[int]) -> None:
        """Start an answer. shown_ids: special tokens that are part of the answer's text."""
        self.rule = rule
        self._trigger = rule.trigger.encode()
        self._codec = codec
        self._shown_ids = shown_ids
        self._text = b""  # end of the answer that may still begin a match
        self._is_over = False  # whether no further call can begin
        reasoning = rule.reasoning
        self._opening = b"" if reasoning is None else reasoning.opening.encode()
        self._closing = b"" if reasoning is None else reasoning.closing.encode()
        self._may_think = reasoning is not None
        self._thinks = reasoning is not None and reasoning.starts_inside

    def push(self, token: int) -> bytes | None:
        """Process the next token. If it completes the trigger, return its bytes after that."""
        if self._is_over:
            return None
        self._text += self._bytes_of(token)
        if self._may_think and not self._is_past_thinking():
            return None
        return self._find_at_start() if self.rule.at_start else self._find_trigger()

    def resume(self) -> None:
        """Continue the search after the end of a call."""
        self._text = b""

    def _bytes_of(self, token: int) -> bytes:
        if token in self._shown_ids:
            return self._codec.special_tokens[token].encode()
        return self._codec.token_bytes[token]

    def _is_past_thinking(self) -> bool:
        """Return whether the answer proper has begun, and drop the text before it."""
        if not self._thinks:
            begun = self._text.lstrip()
            if self._opening.startswith(begun[: len(self._opening)]):
                if len(begun) < len(self._opening):
                    return False  # not known yet
                self._thinks = True
                self._text = begun[len(self._opening) :]
            else:
                self._may_think = False
                return True
        place = self._text.find(self._closing)
        if place < 0:
            self._text = self._text[-len(self._closing) :]
            return False
        self._text = self._text[place + len(self._closing) :]
        self._may_think = self._thinks = False
        return True

    def _find_at_start(self) -> bytes | None:
        begun = self._text.lstrip()
        if begun.startswith(self._trigger):
            self._is_over = True
            return begun[len(self._trigger) :]
        self._is_over = not self._trigger.startswith(begun)
        return None

    def _find_trigger(self) -> bytes | None:
        place = self._text.find(self._trigger)
        if place < 0:
            self._text = self._text[-len(self._trigger) :]
            return None
        rest, self._text = self._text[place + len(self._trigger) :], b""
        return rest
