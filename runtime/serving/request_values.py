"""Values of a request's body: each is read in one pass, up to the first thing that is wrong.

The readers raise ValueError with a message of one line that is short whatever the value is.
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
MAX_CONTAINERS = 1 << 17  # lists and objects of a body; each may take 100 times its bytes
MAX_DIGITS = 18  # of a token id
MAX_FIELDS = 128  # of a request, or of an inner object of a fixed form
Inner = Mapping[str, "Inner"]
# Objects of a fixed form inside a request, and inside each other.
INNER_OBJECTS: Inner = {"stream_options": {}, "response_format": {"json_schema": {}}}
RENDERED = ("messages", "add_generation_prompt")  # variables of templates with their own fields
PROMPT_FORMS = "pass text, a list of texts, token ids, or a list of lists of token ids"


def json_object(body: bytes) -> dict[str, Any]:
    """The object in a body. Raises RequestError."""
    num_containers = body.count(b"[") + body.count(b"{")
    if num_containers > MAX_CONTAINERS:
        raise RequestError(
            400, f"the body has {num_containers} opening brackets; send at most {MAX_CONTAINERS}"
        )
    try:
        data = parse_json(body)
    except ValueError as error:
        raise RequestError(400, f"the body is not usable JSON: {error}") from error
    if not isinstance(data, dict):
        raise RequestError(400, f"the body is {told(data)}; send a JSON object")
    return data


def without_nulls(data: dict[str, Any], inner: Inner = INNER_OBJECTS) -> dict[str, Any]:
    """A request without its fields that are null, which stand for the defaults.

    inner: the objects in it of which the same holds. Raises RequestError for more fields than any
    form has.
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
    """A stop string, or a few."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise ValueError(f"pass a text or a list of texts (given: {told(value)})")
    faults = stop_faults(stops)
    if faults:
        raise ValueError(faults[0])
    return stops


def read_biases(value: Any) -> dict[int, float]:
    """Numbers by token id, which JSON has as texts."""
    if not isinstance(value, dict):
        raise ValueError(f"pass an object of numbers by token id (given: {told(value)})")
    biases = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= MAX_DIGITS):
            raise ValueError(f"{shown(key)} is not a token id")
        if type(bias) not in (int, float):
            raise ValueError(f"the bias of token {key} is {told(bias)}, not a number")
        biases[int(key)] = bias
    return biases


def read_token_ids(value: Any) -> list[int]:
    """A list of whole numbers."""
    if not isinstance(value, list):
        raise ValueError(f"pass a list of token ids (given: {told(value)})")
    _check_items(value, int, "a token id")
    return value


def read_messages(value: Any) -> list[dict[str, Any]]:
    """A conversation, whose messages the chat template checks."""
    if not isinstance(value, list):
        raise ValueError(f"pass a list of messages (given: {told(value)})")
    if not value:
        raise ValueError("there are none; pass at least one message")
    _check_items(value, dict, 'a message such as {"role": "user", "content": "..."}')
    return value


def read_tool_list(value: Any) -> list[Tool]:
    """Tools that the answer may call."""
    try:
        return read_tools(value)
    except PromptError as error:
        raise ValueError(str(error)) from error


def read_variables(value: Any) -> dict[str, Any]:
    """Variables of a chat template."""
    if not isinstance(value, dict):
        raise ValueError(f"pass an object of the template's variables (given: {told(value)})")
    taken = [name for name in (*RENDERED, *TOOLS_VARIABLES) if name in value]
    if taken:
        raise ValueError(f"{taken[0]!r} has a field of its own in a request; set it there")
    return value


def read_prompt(value: Any) -> Any:
    """One prompt as text or token ids, or a list of such."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"{PROMPT_FORMS} (given: {told(value)})")
    kind = type(value[0]) if value else str
    if kind not in (str, int, list):
        raise ValueError(f"{PROMPT_FORMS}; number 0 is {told(value[0])}")
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


def told(value: Any) -> str:
    """A value for a message; its cost does not grow with the value."""
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
            raise ValueError(f"number {place} is {told(value)}, not {what}")
