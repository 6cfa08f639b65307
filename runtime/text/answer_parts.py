"""Incremental parsing of an answer into thinking, content and tool calls."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from bita.json_values import parse_json
from bita.runtime.text.call_form import ID_SLOT, CallForm
from bita.runtime.text.json_end import JsonEnd
from bita.runtime.text.reasoning import Reasoning

_ARGUMENT_KEYS = ("arguments", "parameters")
_ID_LENGTH = 9


@dataclass(frozen=True)
class Part:
    """A piece of an answer.

    "call" begins a call, and its text is the tool's name. "arguments" are pieces of the JSON of the
    last call.
    """

    kind: Literal["content", "reasoning", "call", "arguments"]
    text: str


class AnswerReader:
    """Parses the text of an answer. The joined parts do not depend on how the text is split.

    Text that begins like a call but is not one is content. White space around thinking and calls is
    dropped.
    """

    def __init__(
        self,
        form: CallForm | None = None,
        names: Collection[str] = (),
        reasoning: Reasoning | None = None,
    ) -> None:
        """Start an answer.

        Args:
            form: The form of calls. None: the answer has no calls.
            names: Names of the tools.
            reasoning: Marks of the thinking. None: the answer has no thinking.
        """
        self.num_calls = 0
        self._form = form
        self._names = names
        self._reasoning = reasoning
        self._buffer = ""  # text that has not been reported yet
        self._arguments_end = JsonEnd()
        self._read = self._read_answer
        if reasoning is not None:
            self._read = self._read_thought if reasoning.starts_inside else self._read_start

    @property
    def is_within_call(self) -> bool:
        """Whether the text so far ends within a call, before the end of its arguments."""
        return self._read in (self._read_arguments, self._read_name)

    def push(self, text: str) -> list[Part]:
        """Add text and return the parts that are now certain."""
        self._buffer += text
        return list(self._run())

    def close(self) -> list[Part]:
        """End the answer and return its remaining parts."""
        parts = list(self._run())
        rest, self._buffer = self._buffer, ""
        if self._read == self._read_loose_call:
            calls = self._parse_loose_calls(rest)
            return [*parts, *(self._emit_calls(calls) if calls else [Part("content", rest)])]
        if self._read in (self._read_thought, self._read_more_thought):
            return [*parts, Part("reasoning", rest)] if rest.strip() else parts
        is_inside = self._read in (self._read_after_arguments, self._read_name)
        if not rest or is_inside or (self.num_calls and not rest.strip()):
            return parts
        return [*parts, Part("content", rest)]

    def _run(self) -> Iterator[Part]:
        """Read until nothing changes any more."""
        before: tuple[Any, int] | None = None
        while before != (before := (self._read, len(self._buffer))):
            yield from self._read()

    def _read_start(self) -> Iterator[Part]:
        """Read the start of an answer, which may begin with thinking."""
        assert self._reasoning is not None
        begun, opening = self._buffer.lstrip(), self._reasoning.opening
        if begun.startswith(opening):
            self._buffer, self._read = begun[len(opening) :], self._read_thought
        elif not opening.startswith(begun):
            self._read = self._read_answer
        yield from ()

    def _read_thought(self) -> Iterator[Part]:
        """Skip white space before the thinking."""
        self._buffer = self._buffer.lstrip()
        if self._buffer:
            self._read = self._read_more_thought
        yield from ()

    def _read_more_thought(self) -> Iterator[Part]:
        assert self._reasoning is not None
        closing = self._reasoning.closing
        place = self._buffer.find(closing)
        thought = self._take_certain(closing) if place < 0 else self._buffer[:place].rstrip()
        if thought:
            yield Part("reasoning", thought)
        if place >= 0:
            self._buffer = self._buffer[place + len(closing) :]
            self._read = self._read_after_thought

    def _read_after_thought(self) -> Iterator[Part]:
        """Skip white space before the answer proper."""
        self._buffer = self._buffer.lstrip()
        if self._buffer:
            self._read = self._read_answer
        yield from ()

    def _read_answer(self) -> Iterator[Part]:
        """Read content up to the beginning of a call."""
        form = self._form
        if form is None:
            self._read = self._read_text
        elif form.has_plain_start:
            begun = self._buffer.lstrip()
            if begun.startswith(form.trigger):
                self._buffer, self._read = begun, self._read_call
            elif not form.trigger.startswith(begun):
                self._read = self._read_text
        else:
            yield from self._read_to_trigger(form.trigger)

    def _read_to_trigger(self, trigger: str) -> Iterator[Part]:
        place = self._buffer.find(trigger)
        text = self._take_certain(trigger) if place < 0 else self._buffer[:place].rstrip()
        if text:
            yield Part("content", text)
        if place >= 0:
            self._buffer, self._read = self._buffer[place:], self._read_call

    def _read_text(self) -> Iterator[Part]:
        """Read content without calls. White space after a call may be the answer's end."""
        if self.num_calls:
            text = self._take_certain("")
        else:
            text, self._buffer = self._buffer, ""
        if text:
            yield Part("content", text)

    def _read_call(self) -> Iterator[Part]:
        """Read the opening of a call in the expected form, or switch to a loose call."""
        assert self._form is not None
        yield from self._read_head(self._form.opening, self._read_loose_call)

    def _read_name(self) -> Iterator[Part]:
        """Read the name of a further call after its opening."""
        yield from self._read_head("", self._read_text)

    def _read_head(self, opening: str, otherwise: Any) -> Iterator[Part]:
        assert self._form is not None
        for name in self._names:
            head = f"{opening}{name}{self._form.middle}{{"
            if self._buffer.startswith(head):
                self._buffer, self._read = self._buffer[len(head) - 1 :], self._read_arguments
                self._arguments_end = JsonEnd()
                self.num_calls += 1
                yield Part("call", name)
                return
            if head.startswith(self._buffer):
                return
        self._read = otherwise

    def _read_arguments(self) -> Iterator[Part]:
        size = self._arguments_end.push(self._buffer)
        text, self._buffer = self._buffer[:size], self._buffer[size:]
        if self._arguments_end.is_over:
            self._read = self._read_after_arguments
        if text:
            yield Part("arguments", text)

    def _read_after_arguments(self) -> Iterator[Part]:
        """Read the end of a call, or the beginning of the next."""
        form = self._form
        assert form is not None
        closing = _follow(form.closing, self._buffer)
        join: int | None = -1
        if form.join is not None and not form.repeats:
            join = _follow(form.join, self._buffer)
        if join is None or (closing is None and join == -1):
            return
        if join >= 0:
            self._buffer, self._read = self._buffer[join:], self._read_name
        else:
            self._buffer = self._buffer[max(closing or 0, 0) :]
            self._read = self._read_answer if form.repeats else self._read_text
        yield from ()

    def _read_loose_call(self) -> Iterator[Part]:
        """Read a complete call that deviates from the form; otherwise it is content."""
        form = self._form
        assert form is not None
        place = -1 if form.end_tag is None else self._buffer.find(form.end_tag)
        if form.end_tag is None or place < 0:
            return  # wait for more text, or for the answer's end
        end = place + len(form.end_tag)
        calls = self._parse_loose_calls(self._buffer[:end])
        if not calls:
            end = len(form.trigger)
            yield Part("content", self._buffer[:end])
        yield from self._emit_calls(calls)
        self._buffer, self._read = self._buffer[end:], self._read_answer

    def _parse_loose_calls(self, text: str) -> list[tuple[str, str]]:
        """Return names and arguments of the JSON between the form's tags; [] if it has no calls."""
        form = self._form
        assert form is not None
        inner = text if form.has_plain_start else text.removeprefix(form.trigger)
        if form.end_tag is not None:
            inner = inner.strip().removesuffix(form.end_tag)
        try:
            found = parse_json(inner.strip())
        except ValueError:
            return []
        given = found if isinstance(found, list) else [found]
        calls = [call for each in given if (call := self._parse_loose_call(each)) is not None]
        return calls if len(calls) == len(given) else []

    def _parse_loose_call(self, call: Any) -> tuple[str, str] | None:
        assert self._form is not None
        if not isinstance(call, dict) or call.get("name") not in self._names:
            return None
        arguments: Any = next((call[key] for key in _ARGUMENT_KEYS if key in call), {})
        if not isinstance(arguments, dict):
            return None
        return call["name"], self._form.dump(arguments)

    def _emit_calls(self, calls: list[tuple[str, str]]) -> Iterator[Part]:
        for name, arguments in calls:
            self.num_calls += 1
            yield Part("call", name)
            yield Part("arguments", arguments)

    def _take_certain(self, mark: str) -> str:
        """Remove and return the certain text of the buffer.

        A possible beginning of `mark` at its end, and white space before that, are kept.
        """
        kept = self._buffer
        sizes = range(min(len(mark) - 1, len(kept)), 0, -1)
        size = next((each for each in sizes if kept.endswith(mark[:each])), 0)
        text = kept[: len(kept) - size].rstrip()
        self._buffer = kept[len(text) :]
        return text


def _follow(pattern: str, text: str) -> int | None:
    """Return how many characters of a text match a pattern with slots of ids.

    None if the text ends within the pattern, -1 if it does not match.
    """
    place = 0
    for character in pattern:
        width = _ID_LENGTH if character == ID_SLOT else 1
        found = text[place : place + width]
        if found != character and not (character == ID_SLOT and (found.isalnum() or not found)):
            return -1 if found else None
        if len(found) < width:
            return None
        place += width
    return place
