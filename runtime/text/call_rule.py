"""When an answer that is free becomes a call, and what the call has to match then."""

from dataclasses import dataclass

from bita.runtime.text.codec import TextCodec
from bita.runtime.text.grammar import Grammar
from bita.runtime.text.reasoning import Reasoning


@dataclass(frozen=True)
class CallRule:
    """What makes a call of an answer that nothing constrains.

    trigger: the text with which a call begins. at_start: whether it counts at the answer's start
    only. grammar: of what follows the trigger, to the end of the call. may_repeat: whether the
    answer goes on after a call, freely, and may have another one; else it has ended. reasoning: how
    thinking is marked, in which nothing is a call.
    """

    trigger: str
    at_start: bool
    grammar: Grammar
    may_repeat: bool
    reasoning: Reasoning | None = None


class CallWatch:
    """Finds the trigger in the tokens of an answer.

    shown_ids: special tokens that are text here, as in the answer's text.
    """

    def __init__(self, rule: CallRule, codec: TextCodec, shown_ids: frozenset[int]) -> None:
        self.rule = rule
        self._trigger = rule.trigger.encode()
        self._codec = codec
        self._shown_ids = shown_ids
        self._text = b""  # what of the answer may still matter
        self._is_over = False  # whether no call can begin any more
        reasoning = rule.reasoning
        self._opening = b"" if reasoning is None else reasoning.opening.encode()
        self._closing = b"" if reasoning is None else reasoning.closing.encode()
        self._may_think = reasoning is not None
        self._thinks = reasoning is not None and reasoning.starts_inside

    def push(self, token: int) -> bytes | None:
        """Take the next token. If it completes the trigger, what of it comes after that."""
        if self._is_over:
            return None
        self._text += self._bytes(token)
        if self._may_think and not self._is_past_thinking():
            return None
        return self._found_at_start() if self.rule.at_start else self._found()

    def resume(self) -> None:
        """Look for the next call, after the end of one."""
        self._text = b""

    def _bytes(self, token: int) -> bytes:
        if token in self._shown_ids:
            return self._codec.special_tokens[token].encode()
        return self._codec.token_bytes[token]

    def _is_past_thinking(self) -> bool:
        """Whether the answer proper has begun; what comes before it is dropped."""
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

    def _found_at_start(self) -> bytes | None:
        begun = self._text.lstrip()
        if begun.startswith(self._trigger):
            self._is_over = True
            return begun[len(self._trigger) :]
        self._is_over = not self._trigger.startswith(begun)
        return None

    def _found(self) -> bytes | None:
        place = self._text.find(self._trigger)
        if place < 0:
            self._text = self._text[-len(self._trigger) :]
            return None
        rest, self._text = self._text[place + len(self._trigger) :], b""
        return rest
