"""The parts of an answer as messages and deltas of OpenAI's interface."""

import secrets
from collections.abc import Sequence
from typing import Any

from bita.runtime.text.answer_parts import AnswerReader, Part

_ID_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TEXTS = {"content": "content", "reasoning": "reasoning_content"}


class Deltas:
    """A streamed answer that is taken apart."""

    def __init__(self, reader: AnswerReader) -> None:
        self._reader = reader
        self._num_told = 0  # calls that have begun

    def push(self, text: str) -> list[dict[str, Any]]:
        """The deltas that a piece of text makes."""
        return self._told(self._reader.push(text))

    def close(self) -> list[dict[str, Any]]:
        """The deltas at the answer's end."""
        return self._told(self._reader.close())

    def finish(self, reason: str) -> str:
        """The reason to finish, which is another one after calls."""
        return finish_of(self._reader, reason)

    def _told(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
        return [self._delta(part) for part in parts]

    def _delta(self, part: Part) -> dict[str, Any]:
        if part.kind in _TEXTS:
            return {_TEXTS[part.kind]: part.text}
        if part.kind == "call":
            self._num_told += 1
            call = {"index": self._num_told - 1, **_new_call(part.text)}
        else:
            call = {"index": self._num_told - 1, "function": {"arguments": part.text}}
        return {"tool_calls": [call]}


def finish_of(reader: AnswerReader, reason: str) -> str:
    """The reason to finish: "tool_calls" where an answer that was not cut ends with all its calls
    whole.
    """
    has_whole_calls = bool(reader.num_calls) and not reader.is_within_call
    return "tool_calls" if reason == "stop" and has_whole_calls else reason


def message_of(reader: AnswerReader, text: str) -> dict[str, Any]:
    """The message of a whole answer."""
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
    """A call without arguments. Its id has nine letters and digits, as some templates want it."""
    call_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(9))
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
