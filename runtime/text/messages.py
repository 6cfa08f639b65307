"""Validation and copying of messages for a chat template."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from bita.errors import PromptError, raise_faults
from bita.json_values import shown

ROLES = ("system", "developer", "user", "assistant", "tool")
# An assistant's message with one of these needs no content.
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "reasoning_content", "thinking", "reasoning")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_WORD = re.compile(r"[A-Za-z0-9]+")
_NUM_WORDS = 50  # per message that are searched for in the prompt

Message = dict[str, Any]


def checked_messages(messages: Any, max_messages: int) -> list[Message]:
    """Return plain copies of messages; a content is a string, a list of text parts, null or absent.

    All other keys are kept, in order. The reasoning of an answer is stored under all names that
    templates read, as in transformers. Raises PromptError that lists every fault.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError(
            f"messages is of type {type(messages).__name__}; "
            'pass a list of {"role": "user", "content": "…"}'
        )
    if not 0 < len(messages) <= max_messages:
        raise PromptError(f"there are {len(messages)} messages; pass 1 to {max_messages}")
    faults: list[str] = []
    checked = [_check_message(index, message, faults) for index, message in enumerate(messages)]
    raise_faults(PromptError, "messages", faults)
    return checked


def without_nulls(messages: Any) -> Any:
    """Return messages without fields that are null or an empty list of calls.

    Such fields mean nothing, but a template may test whether they exist. A value that is not a list
    of messages is returned unchanged.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        return messages
    return [_drop_nulls(each) if isinstance(each, Mapping) else each for each in messages]


def _drop_nulls(message: Mapping[str, Any]) -> Message:
    kept = {key: value for key, value in message.items() if key == "content" or value is not None}
    calls = kept.get("tool_calls")
    if calls == []:
        del kept["tool_calls"]
    elif isinstance(calls, list):
        kept["tool_calls"] = [
            {key: value for key, value in call.items() if value is not None}
            if isinstance(call, Mapping)
            else call
            for call in calls
        ]
    return kept


def plain_json(value: Mapping[str, Any], index: int | str, faults: list[str]) -> Message:
    """Return a copy made of JSON types; the sandbox cannot know the methods of other objects."""
    try:
        copied: Message = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        faults.append(
            f"number {index} is not plain JSON ({error}); pass strings, numbers and lists"
        )
        return {}
    return copied


def lost_message(messages: Sequence[Message], prompt: str) -> int | None:
    """Return the index of the last user message if the prompt lacks its text, else None.

    Templates may leave out earlier turns. The test searches for the longest word in Latin letters,
    ignoring case; a message without any such word is never reported.
    """
    index = max((i for i, each in enumerate(messages) if each["role"] == "user"), default=None)
    if index is None:
        return None
    words = islice(_WORD.finditer(text_of(messages[index].get("content"))), _NUM_WORDS)
    longest = max((found[0] for found in words), key=len, default="")
    is_there = longest in prompt or longest.lower() in prompt.lower()
    return None if is_there else index


def text_of(content: Any) -> str:
    """Return the text of a message's content in any of its forms."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part if isinstance(part, str) else part["text"] for part in parts)


def _check_message(index: int, message: Any, faults: list[str]) -> Message:
    """Return a plain copy of one message, and add its faults to `faults`."""
    if not isinstance(message, Mapping):
        faults.append(f'number {index} is {shown(message)}; pass {{"role": …, "content": …}}')
        return {}
    role = message.get("role")
    if role not in ROLES:
        faults.append(f"number {index} has the role {shown(role)}; use one of {', '.join(ROLES)}")
    faults += _content_faults(index, message)
    copied = plain_json({**message}, index, faults)
    reasoning = next((copied[key] for key in _REASONING if copied.get(key) is not None), None)
    if reasoning is None:
        return copied
    return {"thinking": reasoning, **copied, "reasoning_content": reasoning}


def _content_faults(index: int, message: Mapping[str, Any]) -> list[str]:
    content = message.get("content")
    if content is None:
        if message.get("role") == "assistant" and any(map(message.get, _INSTEAD_OF_CONTENT)):
            return []
        return [f"number {index} has the content None; pass a string"]
    if isinstance(content, str):
        return []
    if isinstance(content, (bytes, bytearray)) or not isinstance(content, Sequence):
        return [f"number {index} has the content {shown(content)}; pass a string"]
    return [
        f"number {index} has the content part {shown(part)}; "
        'only {"type": "text", "text": "…"} parts are supported'
        for part in content
        if not _is_text_part(part)
    ]


def _is_text_part(part: Any) -> bool:
    if isinstance(part, Mapping):
        return part.get("type") == "text" and isinstance(part.get("text"), str)
    return isinstance(part, str)
