"""Validation of the tools that a model may call."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bita.errors import PromptError
from bita.json_values import shown

MAX_TOOLS = 128
MAX_NAME = 128  # characters
MAX_TOOL_CHARACTERS = 1 << 16  # of all tools as JSON
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_KNOWN = ("name", "description", "parameters", "strict")
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Tool:
    """A function with a JSON schema of its arguments."""

    name: str
    description: str = ""  # "": none
    parameters: Mapping[str, Any] = field(default_factory=lambda: dict(_NO_PARAMETERS))
    is_strict: bool = False  # allow only properties that the schema names, even if it names none

    def as_template_value(self) -> dict[str, Any]:
        """Return the tool in the form that chat templates take."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}


def read_tools(value: Any) -> list[Tool]:
    """Read a list of tools in OpenAI's format; null is the default of every field.

    Raises PromptError that names the tool and its field.
    """
    if not isinstance(value, list):
        raise PromptError(f"tools: pass a list of tools (given: {shown(value)})")
    if len(value) > MAX_TOOLS:
        raise PromptError(f"tools: there are {len(value)}; pass at most {MAX_TOOLS}")
    tools = [_parse_tool(f"tools.{place}", each) for place, each in enumerate(value)]
    names = [tool.name for tool in tools]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise PromptError(f"tools.{place}.function.name: {name!r} occurs twice; rename one")
    num_characters = sum(len(json.dumps(tool.as_template_value())) for tool in tools)
    if num_characters > MAX_TOOL_CHARACTERS:
        raise PromptError(
            f"tools: they have {num_characters} characters as JSON; use at most "
            f"{MAX_TOOL_CHARACTERS}"
        )
    return tools


def _parse_tool(place: str, value: Any) -> Tool:
    if not isinstance(value, dict):
        raise PromptError(f'{place} is {shown(value)}; pass {{"type": "function", "function": …}}')
    kind = value.get("type") or "function"
    if kind != "function":
        raise PromptError(f"{place}.type is {shown(kind)}; only 'function' is supported")
    function = value.get("function")
    if not isinstance(function, dict):
        raise PromptError(f"{place}.function is {shown(function)}; pass an object with a name")
    given = {key: each for key, each in function.items() if each is not None}
    unknown = [key for key in given if key not in _KNOWN]
    if unknown:
        raise PromptError(f"{place}.function.{unknown[0]:.60} is not supported; leave it out")
    return _parse_function(f"{place}.function", given)


def _parse_function(place: str, given: Mapping[str, Any]) -> Tool:
    name, description = given.get("name"), given.get("description", "")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PromptError(
            f"{place}.name is {shown(name)}; use 1 to {MAX_NAME} letters, digits and _.:/-"
        )
    if not isinstance(description, str):
        raise PromptError(f"{place}.description of {name!r} is {shown(description)}; pass a text")
    strict = given.get("strict", False)
    if not isinstance(strict, bool):
        raise PromptError(f"{place}.strict of {name!r} is {shown(strict)}; pass true or false")
    parameters = given.get("parameters") or _NO_PARAMETERS
    return Tool(
        name, description, _check_schema(f"{place}.parameters of {name!r}", parameters), strict
    )


def _check_schema(place: str, schema: Any) -> Mapping[str, Any]:
    """Check that a schema describes objects, and return it."""
    if not isinstance(schema, dict):
        raise PromptError(f"{place} is {shown(schema)}; pass a JSON schema")
    if schema.get("type", "object") != "object":
        raise PromptError(
            f"{place} has the type {shown(schema['type'])}; arguments are an object: "
            'use {"type": "object", "properties": …}'
        )
    return {"type": "object", **schema}


@dataclass(frozen=True)
class ToolChoice:
    """The tools that an answer may call."""

    tools: Sequence[Tool] = ()
    must_call: bool = False  # whether the answer must be a call
    is_single: bool = False  # whether it may have only one call


def read_choice(value: Any, tools: Sequence[Tool], allows_several: bool) -> ToolChoice:
    """Apply `tool_choice` and `parallel_tool_calls` to the tools.

    Args:
        value: `tool_choice`: None, "none", "auto", "required",
            {"type": "function", "function": {"name": …}}, or
            {"type": "allowed_tools", "allowed_tools": {"mode": …, "tools": […]}}.
        tools: The tools of the request.
        allows_several: `parallel_tool_calls`.

    Raises:
        PromptError: If `value` is invalid or names an unknown tool.
    """
    if value is None or value == "auto":
        return ToolChoice(tools, is_single=not allows_several)
    if value == "none":
        return ToolChoice()
    if value == "required":
        if not tools:
            raise PromptError("tool_choice is 'required', but there are no tools; pass some")
        return ToolChoice(tools, must_call=True, is_single=not allows_several)
    if isinstance(value, dict) and value.get("type") == "function":
        named = [_find_tool(value.get("function", value), tools)]
        return ToolChoice(named, must_call=True, is_single=True)
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        return _parse_allowed(value.get("allowed_tools"), tools, allows_several)
    raise PromptError(
        f"tool_choice is {shown(value)}; pass 'none', 'auto', 'required' or "
        '{"type": "function", "function": {"name": …}}'
    )


def _parse_allowed(value: Any, tools: Sequence[Tool], allows_several: bool) -> ToolChoice:
    given = value if isinstance(value, dict) else {}
    listed, mode = given.get("tools"), given.get("mode") or "auto"
    if not isinstance(listed, list) or not listed or mode not in ("auto", "required"):
        raise PromptError(
            f"tool_choice.allowed_tools is {shown(value)}; "
            'pass {"mode": "auto" or "required", "tools": […]}'
        )
    functions = [each.get("function", each) if isinstance(each, dict) else None for each in listed]
    chosen = [_find_tool(each, tools) for each in functions[:MAX_TOOLS]]
    return ToolChoice(chosen, must_call=mode == "required", is_single=not allows_several)


def _find_tool(function: Any, tools: Sequence[Tool]) -> Tool:
    name = function.get("name") if isinstance(function, dict) else None
    for tool in tools:
        if tool.name == name:
            return tool
    known = ", ".join(tool.name for tool in tools) or "none"
    raise PromptError(f"tool_choice names the tool {shown(name)}; there are: {known:.200}")
