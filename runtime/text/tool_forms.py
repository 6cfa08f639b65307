"""Detects how a chat template handles tools, by rendering sentinels.

Templates take tools under some variable, write calls in a form of their own, and results under some
role; many do none of this. Every test renders a few words, bounded like those of `message_forms`,
and runs once per template.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bita.runtime.text.call_form import HERMES, ID_SLOT, CallForm, described_form
from bita.runtime.text.message_forms import CostlyError, Message, RejectedError

Variables = Mapping[str, Any]
Render = Callable[[list[Message], bool, Variables], str]  # messages, add_generation_prompt, …
Say = Callable[[str, str], Any]  # role, text -> the content in the form that the template reads

_NAMES = ("bita_look_4821", "bita_find_7350")
_KEY, _VALUE, _RESULT, _SAID = "bita_key_2764", "bita_value_9137", "BitaResult6402", "BitaSaid5518"
_SHORT_ID, _OTHER_ID, _LONG_ID = "call00000", "call00001", "call_0123456789abcdef01234567"
_ARGUMENTS = re.compile(rf'\{{\s*"{_KEY}"(\s*:\s*)"{_VALUE}"\s*\}}')
_END_TOKEN = re.compile(r"(<\|[a-z_]{1,40}\|>|</s>|<end_of_turn>)$")
_BEGUN_TAG = re.compile(r"[<\[][^<>\[\]\s]*$")  # common beginning of two tags
_UNKNOWN_ROLE = "bitarole"
TOOLS_VARIABLES = ("tools", "xml_tools")


@dataclass(frozen=True)
class ToolForms:
    """How a template handles tools."""

    variable: str | None = None  # variable of the tools that it describes; None: describes none
    form: CallForm = HERMES  # of calls
    writes_calls: bool = False  # whether it writes the calls of an assistant's message in `form`
    takes_text: bool = False  # whether it takes their arguments as JSON text, not as an object
    writes_results: bool = False  # whether it supports messages of role "tool"
    wants_short_ids: bool = False  # whether ids of calls must have nine characters
    takes_system: bool = False  # whether it writes a system message


def find_tool_forms(source: str, render: Render, say: Say) -> ToolForms:
    """Detect how a template handles tools, with at most about 30 renderings of a few words.

    Args:
        source: Source of the template.
        render: Renders a conversation. Raises RejectedError if the template refuses it, and
            CostlyError if that takes too long; whatever is unknown by then counts as unsupported.
        say: Returns the content for a role and a text in the form that the template reads.
    """
    return _Probe(source, render, say).run()


class _Probe:
    def __init__(self, source: str, render: Render, say: Say) -> None:
        self._source = source
        self._render = render
        self._say = say
        self._is_costly = False

    def run(self) -> ToolForms:
        variable, description = self._find_variable()
        found = self._find_call_form(variable)
        form, takes_text = found if found is not None else (None, False)
        if form is None and variable is not None:
            form = described_form(description)
            if form is None:  # its form of calls is unknown: describe another one
                variable = None
        result = ToolForms(
            variable=variable,
            form=form or HERMES,
            writes_calls=found is not None,
            takes_text=takes_text,
            takes_system=self._takes_system(),
        )
        return self._add_results(result)

    def _find_variable(self) -> tuple[str | None, str]:
        """Return the variable of the tools that the template describes, and the prompt."""
        for variable in TOOLS_VARIABLES:
            if variable not in self._source:
                continue
            for messages in ([self._user()], [self._system(), self._user()]):
                text = self._try_render(messages, {variable: [_tool(_NAMES[0])]}, is_prompt=True)
                if text is not None and _NAMES[0] in text:
                    return variable, text
        return None, ""

    def _takes_system(self) -> bool:
        text = self._try_render([self._system(), self._user()], {}, is_prompt=True)
        return text is not None and _SAID in text

    def _find_call_form(self, variable: str | None) -> tuple[CallForm, bool] | None:
        """Return the form of calls, and whether their arguments must be text."""
        if "tool_calls" not in self._source:
            return None
        tools = {} if variable is None else {variable: [_tool(name) for name in _NAMES]}
        said = self._try_render([self._user(), self._assistant()], tools)
        for takes_text in (False, True):
            for content in (None, self._say("assistant", "")):
                one = self._try_render([self._user(), _calls(1, takes_text, content)], tools)
                if one is None or _NAMES[0] not in one:
                    continue
                two = self._try_render([self._user(), _calls(2, takes_text, content)], tools)
                start, end = self._find_answer_bounds(one, said)
                form = _parse_form(one[start:], two, end)
                if form is not None:
                    return form, takes_text
        return None

    def _find_answer_bounds(self, call: str, said: str | None) -> tuple[int, str]:
        """Return the start of the answer in the text with a call, and the text that ends it."""
        if said is None or _SAID not in said:
            said = (self._try_render([self._user()], {}, is_prompt=True) or "") + _SAID
        header, _, end = said.partition(_SAID)
        start = 0
        while start < min(len(header), len(call)) and header[start] == call[start]:
            start += 1
        begun = _BEGUN_TAG.search(call[:start]) if start < len(header) else None
        return begun.start() if begun else start, end

    def _add_results(self, forms: ToolForms) -> ToolForms:
        """Add how the template takes results and ids."""
        tools = {} if forms.variable is None else {forms.variable: [_tool(_NAMES[0])]}
        text = self._result(forms, tools, "tool", _SHORT_ID)
        other = self._result(forms, tools, _UNKNOWN_ROLE, _SHORT_ID)
        is_same = other is not None and text == other.replace(_UNKNOWN_ROLE, "tool")
        writes = text is not None and _RESULT in text and not is_same
        long = self._result(forms, tools, "tool", _LONG_ID) if writes else ""
        return ToolForms(
            **{**vars(forms), "writes_results": writes, "wants_short_ids": writes and long is None}
        )

    def _result(self, forms: ToolForms, tools: Variables, role: str, call_id: str) -> str | None:
        call = self._assistant()
        if forms.writes_calls:
            call = _calls(1, forms.takes_text, self._say("assistant", ""), call_id)
        content = self._say("tool", _RESULT)
        result = {"role": role, "content": content, "name": _NAMES[0], "tool_call_id": call_id}
        return self._try_render([self._user(), call, result], tools, is_prompt=True)

    def _try_render(
        self, messages: list[Message], variables: Variables, is_prompt: bool = False
    ) -> str | None:
        if self._is_costly:
            return None
        try:
            return self._render(messages, is_prompt, variables)
        except RejectedError:
            return None
        except CostlyError:
            self._is_costly = True
            return None

    def _user(self) -> Message:
        return {"role": "user", "content": self._say("user", "Hi")}

    def _system(self) -> Message:
        return {"role": "system", "content": self._say("system", _SAID)}

    def _assistant(self) -> Message:
        return {"role": "assistant", "content": self._say("assistant", _SAID)}


def _tool(name: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {_KEY: {"type": "string", "description": "It."}}}
    function = {"name": name, "description": "Looks.", "parameters": schema}
    return {"type": "function", "function": function}


def _calls(count: int, takes_text: bool, content: Any, call_id: str = _SHORT_ID) -> Message:
    arguments: Any = {_KEY: _VALUE}
    if takes_text:
        arguments = json.dumps(arguments)
    calls = [
        {"id": each, "type": "function", "function": {"name": name, "arguments": arguments}}
        for name, each in zip(_NAMES[:count], (call_id, _OTHER_ID), strict=False)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def _parse_form(one: str, two: str | None, end: str) -> CallForm | None:
    """Parse the form of calls from the text of an answer with one call, and a prompt with two.

    end: the text that ends the turn. Returns None if a part is missing, or if ids come before the
    arguments.
    """
    opening, is_there, rest = one.partition(_NAMES[0])
    found = _ARGUMENTS.search(rest)
    if not is_there or found is None or not opening.strip():
        return None
    middle, tail = rest[: found.start()], rest[found.end() :]
    closing = tail.removesuffix(end) if end and tail.endswith(end) else _strip_end(tail)
    separator = found[1]
    form = CallForm(
        opening.lstrip(),
        middle,
        closing.rstrip().replace(_SHORT_ID, ID_SLOT),
        _parse_join(two, middle),
        separator,
        ", " if separator.endswith(" ") else ",",
    )
    return form if _is_sound(form, end) else None


def _is_sound(form: CallForm, end: str) -> bool:
    """Return whether a form is the same for all calls, and the turn ends after it."""
    parts = "\n".join((form.opening, form.middle, form.closing, form.join or ""))
    found = (*_NAMES, _KEY, _VALUE)
    has_early_id = any(each in form.opening + form.middle for each in (_SHORT_ID, ID_SLOT))
    ends_early = bool(end.strip()) and form.opening.startswith(end.split()[0])
    return not (has_early_id or ends_early or any(each in parts for each in found))


def _parse_join(two: str | None, middle: str) -> str | None:
    """Return the text between a call's arguments and the next name; None for single calls."""
    if two is None:
        return None
    found = _ARGUMENTS.search(two, max(two.find(f"{_NAMES[0]}{middle}"), 0))
    if found is None:
        return None
    join, is_there, rest = two[found.end() :].partition(_NAMES[1])
    if not is_there or not rest.startswith(middle) or len(join) > 500:
        return None
    return join.replace(_SHORT_ID, ID_SLOT).replace(_OTHER_ID, ID_SLOT)


def _strip_end(tail: str) -> str:
    """Strip the token that ends a call, which may differ from that of a text."""
    stripped = tail.rstrip()
    tag = _END_TOKEN.search(stripped)
    return stripped[: tag.start()] if tag else stripped
