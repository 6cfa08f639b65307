"""Build messages and deltas of OpenAI's interface from the parts of an answer."""

import secrets
from collections.abc import Sequence
from typing import Any

from bita.runtime.text.answer_parts import AnswerReader, Part

_ID_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TEXTS = {"content": "content", "reasoning": "reasoning_content"}


class Deltas:
    """The deltas of a streamed answer with reasoning or tool calls."""

    def __init__(self, reader: AnswerReader) -> None:
        self._reader = reader
        self._num_calls = 0  # calls that have begun

    def push(self, text: str) -> list[dict[str, Any]]:
        """Return the deltas of a piece of text."""
        return self._deltas(self._reader.push(text))

    def close(self) -> list[dict[str, Any]]:
        """Return the deltas at the answer's end."""
        return self._deltas(self._reader.close())

    def finish(self, reason: str) -> str:
        """Return the finish reason, which changes after calls."""
        return finish_of(self._reader, reason)

    def _deltas(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
        return [self._delta(part) for part in parts]

    def _delta(self, part: Part) -> dict[str, Any]:
        if part.kind in _TEXTS:
            return {_TEXTS[part.kind]: part.text}
        if part.kind == "call":
            self._num_calls += 1
            call = {"index": self._num_calls - 1, **_new_call(part.text)}
        else:
            call = {"index": self._num_calls - 1, "function": {"arguments": part.text}}
        return {"tool_calls": [call]}


def finish_of(reader: AnswerReader, reason: str) -> str:
    """Return the finish reason: "tool_calls" if a complete answer has complete calls."""
    has_whole_calls = bool(reader.num_calls) and not reader.is_within_call
    return "tool_calls" if reason == "stop" and has_whole_calls else reason


def message_of(reader: AnswerReader, text: str) -> dict[str, Any]:
    """Return the message of a complete answer."""
    parts = [*reader.push(text), *reader.close()]
    content = "".join(part.text for part in parts if part.kind == "content")
    thought = "".join(part.text for part in parts if part.kind == "reasoning")
    calls: list[dict[str, Any]] = []
    for part in parts:
        if part.kind == "call":
            calls.append(_new_call(part.text))
        elif part.kind == "arguments":
            calls[-1]["function"]["arguments"] += part.text
    has_no_text = not content and (calls or thought)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if has_no_text else content,
        "refusal": None,
    }
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    return message


def _new_call(name: str) -> dict[str, Any]:
    """Return a call without arguments. Some templates require an id of nine letters and digits."""
    call_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(9))
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
