"""Read the values of a request's body, each in one pass up to the first fault.

The readers raise ValueError with a short message of one line, whatever the value is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bita.errors import PromptError
from bita.json_values import parse_json, shown
from bita.runtime.serving.errors import RequestError
from bita.runtime.text.stopping import stop_faults
from bita.runtime.text.tool_forms import TOOLS_VARIABLES
from bita.runtime.text.tools import Tool, read_tools

MAX_PROMPTS = 16
MAX_CONTAINERS = 1 << 17  # lists and objects in a body; each may take 100 times its size in bytes
MAX_DIGITS = 18  # digits of a token id
MAX_FIELDS = 128  # fields of a request, or of an inner object of a fixed form
Inner = Mapping[str, "Inner"]
# Objects of a fixed form in a request, and their own inner objects.
INNER_OBJECTS: Inner = {"stream_options": {}, "response_format": {"json_schema": {}}}
RENDERED = ("messages", "add_generation_prompt")  # template variables with their own fields
PROMPT_FORMS = "pass text, a list of texts, token ids, or a list of lists of token ids"


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raises RequestError."""
    num_containers = body.count(b"[") + body.count(b"{")
    if num_containers > MAX_CONTAINERS:
        raise RequestError(
            400, f"the body has {num_containers} opening brackets; send at most {MAX_CONTAINERS}"
        )
    try:
        data = parse_json(body)
    except ValueError as error:
        raise RequestError(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise RequestError(400, f"the body is {describe(data)}; send a JSON object")
    return data


def without_nulls(data: dict[str, Any], inner: Inner = INNER_OBJECTS) -> dict[str, Any]:
    """Return a request without fields that are null, which stand for the defaults.

    inner: objects in it to treat in the same way.

    Raises RequestError if there are more fields than any valid request has.
    """
    if len(data) > MAX_FIELDS:
        raise RequestError(
            400, f"an object of the body has {len(data)} fields; send at most {MAX_FIELDS}"
        )
    kept = {}
    for name, value in data.items():
        if name in inner and isinstance(value, dict):
            kept[name] = without_nulls(value, inner[name])
        elif value is not None:
            kept[name] = value
    return kept


def read_stops(value: Any) -> Sequence[str]:
    """Return the stop strings from one string or a list."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise ValueError(f"pass a string or a list of strings (given: {describe(value)})")
    faults = stop_faults(stops)
    if faults:
        raise ValueError(faults[0])
    return stops


def read_biases(value: Any) -> dict[int, float]:
    """Return biases by token id; in JSON the ids are strings."""
    if not isinstance(value, dict):
        raise ValueError(f"pass an object of numbers by token id (given: {describe(value)})")
    biases = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= MAX_DIGITS):
            raise ValueError(f"{shown(key)} is not a token id")
        if type(bias) not in (int, float):
            raise ValueError(f"the bias of token {key} is {describe(bias)}, not a number")
        biases[int(key)] = bias
    return biases


def read_token_ids(value: Any) -> list[int]:
    """Return a list of token ids."""
    if not isinstance(value, list):
        raise ValueError(f"pass a list of token ids (given: {describe(value)})")
    _check_items(value, int, "a token id")
    return value


def read_messages(value: Any) -> list[dict[str, Any]]:
    """Return the messages of a conversation; the chat template checks their content."""
    if not isinstance(value, list):
        raise ValueError(f"pass a list of messages (given: {describe(value)})")
    if not value:
        raise ValueError("there are none; pass at least one message")
    _check_items(value, dict, 'a message such as {"role": "user", "content": "..."}')
    return value


def read_tool_list(value: Any) -> list[Tool]:
    """Return the tools that the answer may call."""
    try:
        return read_tools(value)
    except PromptError as error:
        raise ValueError(str(error)) from error


def read_variables(value: Any) -> dict[str, Any]:
    """Return variables for the chat template."""
    if not isinstance(value, dict):
        raise ValueError(f"pass an object of the template's variables (given: {describe(value)})")
    taken = [name for name in (*RENDERED, *TOOLS_VARIABLES) if name in value]
    if taken:
        raise ValueError(f"{taken[0]!r} has its own field in a request; set it there")
    return value


def read_prompt(value: Any) -> Any:
    """Return one prompt as text or token ids, or a list of such prompts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"{PROMPT_FORMS} (given: {describe(value)})")
    kind = type(value[0]) if value else str
    if kind not in (str, int, list):
        raise ValueError(f"{PROMPT_FORMS}; number 0 is {describe(value[0])}")
    if kind is not int and not 1 <= len(value) <= MAX_PROMPTS:
        raise ValueError(f"there are {len(value)} prompts; pass 1 to {MAX_PROMPTS}")
    what = {str: "a text", int: "a token id", list: "a list of token ids"}[kind]
    _check_items(value, kind, f"{what} as number 0 is")
    for place, ids in enumerate(value if kind is list else ()):
        try:
            _check_items(ids, int, "a token id")
        except ValueError as error:
            raise ValueError(f"number {place}: {error}") from error
    return value


def describe(value: Any) -> str:
    """Describe a value for a message, at a cost that does not grow with the value."""
    if isinstance(value, str):
        return shown(value[:100])
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    return shown(value)


def _check_items(values: list[Any], kind: type, what: str) -> None:
    for place, value in enumerate(values):
        if type(value) is not kind:
            raise ValueError(f"number {place} is {describe(value)}, not {what}")
