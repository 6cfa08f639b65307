"""Conversion of conversations with tools to the form that a chat template takes.

A template that describes tools, writes calls and takes results gets them in its own form. What it
does not support is written into ordinary messages, in the form of Hermes models: descriptions into
the system message, calls into the assistant's text, results into user messages.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from bita.json_values import parse_json
from bita.runtime.text.messages import Message, text_of
from bita.runtime.text.tool_forms import ToolForms
from bita.runtime.text.tools import Tool

_ID_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def uses_tools(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> bool:
    """Return whether a conversation has tools, calls or results."""
    return bool(tools) or any(
        each.get("tool_calls") or each.get("role") == "tool" for each in messages
    )


def with_tools(
    messages: Sequence[Message], tools: Sequence[Tool], forms: ToolForms
) -> tuple[list[Message], dict[str, Any]]:
    """Return a valid conversation in the form that a template takes, and its variables."""
    changed = [_write_calls(message, forms) for message in messages]
    if not forms.writes_results:
        changed = _write_results_as_text(changed)
    if not tools:
        return changed, {}
    if forms.variable is not None:
        return changed, {forms.variable: [tool.as_template_value() for tool in tools]}
    return _add_description(changed, description(tools, forms), forms.takes_system), {}


def description(tools: Sequence[Tool], forms: ToolForms) -> str:
    """Describe tools to a model whose template does not.

    The text is short, since all of it is read before the first answer.
    """
    functions = [tool.as_template_value()["function"] for tool in tools]
    lines = [json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in functions]
    example = forms.form.write([("NAME", "{ARGUMENTS}")])
    return "\n".join(
        ("You can call these functions:", *lines, "To call one, answer in this form:", example)
    )


def _write_calls(message: Message, forms: ToolForms) -> Message:
    """Convert the calls of a message to the template's form, or to text in its content."""
    if forms.wants_short_ids and "tool_call_id" in message:
        message = {**message, "tool_call_id": _short_id(message["tool_call_id"])}
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not calls:
        return message
    if forms.writes_calls:
        return {**message, "tool_calls": [_convert_call(each, forms) for each in calls]}
    pairs = [_name_and_arguments(each, forms) for each in calls]
    texts = [text_of(message.get("content")), forms.form.write(pairs)]
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": "\n".join(text for text in texts if text)}


def _convert_call(call: Any, forms: ToolForms) -> Any:
    """Return a call with its arguments and its id in the form that the template takes."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    function = dict(call["function"])
    arguments = function.get("arguments", {})
    if forms.takes_text and not isinstance(arguments, str):
        arguments = forms.form.dump(arguments)
    elif not forms.takes_text and isinstance(arguments, str):
        arguments = _parse_object(arguments)
    changed = {**call, "function": {**function, "arguments": arguments}}
    if forms.wants_short_ids and "id" in call:
        changed["id"] = _short_id(call["id"])
    return changed


def _parse_object(arguments: str) -> Any:
    """Return the JSON object in a text, or the text itself if it has none."""
    try:
        found = parse_json(arguments or "{}")
    except ValueError:
        return arguments
    return found if isinstance(found, dict) else arguments


def _name_and_arguments(call: Any, forms: ToolForms) -> tuple[str, str]:
    function = call.get("function") if isinstance(call, dict) else None
    given = function if isinstance(function, dict) else {}
    arguments = given.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = _parse_object(arguments)
    text = arguments if isinstance(arguments, str) else forms.form.dump(arguments)
    return str(given.get("name", "")), text


def _short_id(call_id: Any) -> Any:
    """Map an id to nine letters and digits, always in the same way."""
    if not isinstance(call_id, str) or (
        len(call_id) == 9 and call_id.isascii() and call_id.isalnum()
    ):
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode("utf-8", "replace")).digest()[:8], "big")
    return "".join(_ID_LETTERS[number // 62**place % 62] for place in range(9))


def _write_results_as_text(messages: Sequence[Message]) -> list[Message]:
    """Convert results of tools to user messages.

    They are joined with adjacent user messages, since some templates require alternating roles.
    """
    changed: list[Message] = []
    is_result = False  # whether the last message has results
    for message in messages:
        if message["role"] == "tool":
            content = f"<tool_response>\n{text_of(message.get('content'))}\n</tool_response>"
            message, joins = {"role": "user", "content": content}, is_result
        else:
            joins = is_result and message["role"] == "user"
        is_result = message["role"] == "user" and (joins or "<tool_response>" in str(message))
        if joins:
            before = changed.pop()
            joined = f"{before['content']}\n{text_of(message.get('content'))}"
            message = {"role": "user", "content": joined}
        changed.append(message)
    return changed


def _add_description(messages: Sequence[Message], text: str, takes_system: bool) -> list[Message]:
    """Add a text to the system message.

    If there is none, create one, or extend the first user message if the template takes no system
    message.
    """
    first, rest = messages[0], list(messages[1:])
    if first["role"] in ("system", "developer") or (not takes_system and first["role"] == "user"):
        content = f"{text_of(first.get('content'))}\n\n{text}"
        if first["role"] == "user":
            content = f"{text}\n\n{text_of(first.get('content'))}"
        return [{**first, "content": content}, *rest]
    return [{"role": "system", "content": text}, first, *rest]
