"""What a chat template does with tools, found by rendering sentinels.

Templates take tools under some name, write calls in a form of their own, and results under some
role; many do none of it. Every question here is a rendering of a few words, bounded like those of
`message_forms`, and asked once for a template.
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
Say = Callable[[str, str], Any]  # role, text: the content in the form that the template reads

_NAMES = ("bita_look_4821", "bita_find_7350")
_KEY, _VALUE, _RESULT, _SAID = "bita_key_2764", "bita_value_9137", "BitaResult6402", "BitaSaid5518"
_SHORT_ID, _OTHER_ID, _LONG_ID = "call00000", "call00001", "call_0123456789abcdef01234567"
_ARGUMENTS = re.compile(rf'\{{\s*"{_KEY}"(\s*:\s*)"{_VALUE}"\s*\}}')
_END_TOKEN = re.compile(r"(<\|[a-z_]{1,40}\|>|</s>|<end_of_turn>)$")
_BEGUN_TAG = re.compile(r"[<\[][^<>\[\]\s]*$")  # what two tags have in common
_UNKNOWN_ROLE = "bitarole"
TOOLS_VARIABLES = ("tools", "xml_tools")


@dataclass(frozen=True)
class ToolForms:
    """What a template does with tools.

    variable: the name under which it takes and describes them; None: under none. form: of calls.
    writes_calls: whether it writes the calls of an assistant's message in that form.
    takes_text: whether it wants their arguments as JSON text, not as an object. writes_results:
    whether it knows messages of role "tool". wants_short_ids: whether ids of calls have to have
    nine characters. takes_system: whether it writes a system message.
    """

    variable: str | None = None
    form: CallForm = HERMES
    writes_calls: bool = False
    takes_text: bool = False
    writes_results: bool = False
    wants_short_ids: bool = False
    takes_system: bool = False


def find_tool_forms(source: str, render: Render, say: Say) -> ToolForms:
    """Ask a template. render: raises RejectedError for what the template does not take, and
    CostlyError where asking takes too long; what is not known then is taken for not there.

    Cost: at most about 30 renderings of a few words.
    """
    return _Probe(source, render, say).run()


class _Probe:
    def __init__(self, source: str, render: Render, say: Say) -> None:
        self._source = source
        self._render = render
        self._say = say
        self._is_costly = False

    def run(self) -> ToolForms:
        variable, description = self._described()
        found = self._written_form(variable)
        form, takes_text = found if found is not None else (None, False)
        if form is None and variable is not None:
            form = described_form(description)
            if form is None:  # its own way of writing calls is not known: describe another
                variable = None
        result = ToolForms(
            variable=variable,
            form=form or HERMES,
            writes_calls=found is not None,
            takes_text=takes_text,
            takes_system=self._takes_system(),
        )
        return self._with_results(result)

    def _described(self) -> tuple[str | None, str]:
        """The variable under which the template describes tools, and the prompt that it makes."""
        for variable in TOOLS_VARIABLES:
            if variable not in self._source:
                continue
            for messages in ([self._user()], [self._system(), self._user()]):
                text = self._text(messages, {variable: [_tool(_NAMES[0])]}, is_prompt=True)
                if text is not None and _NAMES[0] in text:
                    return variable, text
        return None, ""

    def _takes_system(self) -> bool:
        text = self._text([self._system(), self._user()], {}, is_prompt=True)
        return text is not None and _SAID in text

    def _written_form(self, variable: str | None) -> tuple[CallForm, bool] | None:
        """The form in which calls are written, and whether their arguments have to be text."""
        if "tool_calls" not in self._source:
            return None
        tools = {} if variable is None else {variable: [_tool(name) for name in _NAMES]}
        said = self._text([self._user(), self._assistant()], tools)
        for takes_text in (False, True):
            for content in (None, self._say("assistant", "")):
                one = self._text([self._user(), _calls(1, takes_text, content)], tools)
                if one is None or _NAMES[0] not in one:
                    continue
                two = self._text([self._user(), _calls(2, takes_text, content)], tools)
                start, end = self._around(one, said)
                form = _form(one[start:], two, end)
                if form is not None:
                    return form, takes_text
        return None

    def _around(self, call: str, said: str | None) -> tuple[int, str]:
        """Where an answer begins in the text of a call, and what ends it there."""
        if said is None or _SAID not in said:
            said = (self._text([self._user()], {}, is_prompt=True) or "") + _SAID
        header, _, end = said.partition(_SAID)
        start = 0
        while start < min(len(header), len(call)) and header[start] == call[start]:
            start += 1
        begun = _BEGUN_TAG.search(call[:start]) if start < len(header) else None
        return begun.start() if begun else start, end

    def _with_results(self, forms: ToolForms) -> ToolForms:
        """What is known, and how the template takes results and ids."""
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
        return self._text([self._user(), call, result], tools, is_prompt=True)

    def _text(
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


def _form(one: str, two: str | None, end: str) -> CallForm | None:
    """The form of calls in the text of an answer with one, and in a prompt with two of them.

    end: what ends the turn. None where a part is not found, or where ids come before arguments.
    """
    opening, is_there, rest = one.partition(_NAMES[0])
    found = _ARGUMENTS.search(rest)
    if not is_there or found is None or not opening.strip():
        return None
    middle, tail = rest[: found.start()], rest[found.end() :]
    closing = tail.removesuffix(end) if end and tail.endswith(end) else _without_end(tail)
    separator = found[1]
    form = CallForm(
        opening.lstrip(),
        middle,
        closing.rstrip().replace(_SHORT_ID, ID_SLOT),
        _join(two, middle),
        separator,
        ", " if separator.endswith(" ") else ",",
    )
    return form if _is_sound(form, end) else None


def _is_sound(form: CallForm, end: str) -> bool:
    """Whether the parts of a form are the same for all calls, and the turn ends after them."""
    parts = "\n".join((form.opening, form.middle, form.closing, form.join or ""))
    found = (*_NAMES, _KEY, _VALUE)
    has_early_id = any(each in form.opening + form.middle for each in (_SHORT_ID, ID_SLOT))
    ends_early = bool(end.strip()) and form.opening.startswith(end.split()[0])
    return not (has_early_id or ends_early or any(each in parts for each in found))


def _join(two: str | None, middle: str) -> str | None:
    """What stands between the arguments of a call and the name of the next; None for one call."""
    if two is None:
        return None
    found = _ARGUMENTS.search(two, max(two.find(f"{_NAMES[0]}{middle}"), 0))
    if found is None:
        return None
    join, is_there, rest = two[found.end() :].partition(_NAMES[1])
    if not is_there or not rest.startswith(middle) or len(join) > 500:
        return None
    return join.replace(_SHORT_ID, ID_SLOT).replace(_OTHER_ID, ID_SLOT)


def _without_end(tail: str) -> str:
    """The rest of a call without the token that ends it, which is another than that of a text."""
    stripped = tail.rstrip()
    tag = _END_TOKEN.search(stripped)
    return stripped[: tag.start()] if tag else stripped
