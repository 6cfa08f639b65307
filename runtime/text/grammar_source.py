"""Translation of grammars for llguidance, and of its error messages."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bita.errors import MissingExtraError, PromptError
from bita.runtime.text.call_lark import calls_lark
from bita.runtime.text.grammar_tokens import NO_TOKEN

# The model may choose white space between JSON tokens, which triples the number of steps.
COMPACT: dict[str, Any] = {"whitespace_flexible": False}
# Allows line ends and indents; without a bound, small models write spaces up to the token limit.
FLEXIBLE: dict[str, Any] = {"whitespace_pattern": r"[ \t\n]{0,20}"}
_NO_FORCING = '%llguidance {"no_forcing": true}'
_FAULT_CHARACTERS = 400


def check_installed() -> None:
    """Raise MissingExtraError if llguidance is not installed."""
    try:
        import llguidance  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("structured output", "structured") from error


def source_text(kind: str, text: str, forces: bool = True) -> str:
    """Return the grammar of a Grammar's kind and text as JSON for llguidance. Raises ValueError.

    forces: whether to allow only the usual tokenization if only one text can follow. It must be
    False if some byte has no token of its own, since only a longer token may be available then.
    """
    if kind == "json_schema":
        grammar: dict[str, Any] = {"json_schema": _schema(text)}
        if not forces:
            grammar = {"lark_grammar": f"start: %json {json.dumps(grammar['json_schema'])}"}
    else:
        grammar = {"lark_grammar": _lark(kind, text)}
    if not forces:
        grammar = {"lark_grammar": f"{_NO_FORCING}\n{grammar['lark_grammar']}"}
    return json.dumps({"grammars": [grammar]})


def _schema(text: str) -> Any:
    """Return a JSON schema completed by the white space that it allows."""
    from llguidance import LLMatcher

    whole = LLMatcher.grammar_from_json_schema(text, defaults=white_space(json.loads(text)))
    return json.loads(whole)["grammars"][0]["json_schema"]


def white_space(schema: Mapping[str, Any]) -> Any:
    """Return the default white space options of a JSON schema; {} if it sets its own pattern."""
    given = schema.get("x-guidance")
    options: Mapping[str, Any] = given if isinstance(given, dict) else {}
    if "whitespace_pattern" in options:
        return {}
    return FLEXIBLE if options.get("whitespace_flexible") else COMPACT


def _lark(kind: str, text: str) -> str:
    from llguidance import LLMatcher

    if kind == "regex":
        whole = LLMatcher.grammar_from_regex(text)
        return str(json.loads(whole)["grammars"][0]["lark_grammar"])
    if kind == "calls":
        return calls_lark(text)
    if kind == "choice":
        choices = (json.dumps(each, ensure_ascii=False) for each in json.loads(text))
        return "start: CHOICE\nCHOICE: " + " | ".join(choices)
    return text


@contextmanager
def refuse_panics() -> Iterator[None]:
    """Turn a panic of llguidance, which is not an Exception, into PromptError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise PromptError(f"the grammar is not usable: {clean_fault(str(error))}") from error


def clean_fault(fault: str) -> str:
    """Return llguidance's message on one line, without the state that it appends."""
    place = fault.find(NO_TOKEN)
    if place >= 0:
        return fault[place : place + len(NO_TOKEN) + len(" 0xFF")]
    if fault.startswith("NoExtension"):
        return "no token of the model continues it"
    for mark in ("<backtrace>", "<state>", "<non-verbose/>", "<grammar>"):
        fault = fault.split(mark)[0]
    return " ".join(fault.split())[:_FAULT_CHARACTERS]
