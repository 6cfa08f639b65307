"""Messages to prompt text, by the chat template that came with the model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateSyntaxError

from bita.engine import TEMPLATE_FILE
from bita.errors import EngineError, PromptError, raise_faults
from bita.json_values import read_regular_file
from bita.runtime.text.message_forms import ContentForms, CostlyError, RejectedError
from bita.runtime.text.messages import (
    ROLES,
    Message,
    checked_messages,
    lost_message,
    plain_json,
    without_nulls,
)
from bita.runtime.text.roles import known_roles
from bita.runtime.text.template_filters import TemplateRefusalError
from bita.runtime.text.template_meter import (
    Meter,
    Spent,
    TemplateLimitError,
    TemplateLimits,
    current_meter,
)
from bita.runtime.text.template_sandbox import MeteredEnvironment
from bita.runtime.text.tool_forms import ToolForms, find_tool_forms
from bita.runtime.text.tool_messages import uses_tools, with_tools
from bita.runtime.text.tools import Tool

_PROBE_SHARE = 20  # of the limits
_MAX_ERROR_CHARACTERS = 1_000  # of what a template says in an error
_OWN_VARIABLES = ("messages", "add_generation_prompt")
_MAX_FILE_BYTES = 4 << 20  # a template of as many characters as are allowed, of 4 bytes each


class LostMessageError(PromptError):
    """A template does not write what a user says."""


class _FailureError(RejectedError):
    """A template failed, where it did not refuse the messages itself."""


class ChatTemplate:
    """Renders conversations as transformers' `apply_chat_template(tokenize=False)` does.

    The template runs in a sandbox that bounds its time and memory (`TemplateLimits`), since it
    comes with a model, and thereby from a stranger. One object may be used by several threads.

    A content reaches the template in a form that it reads: see `ContentForms`. The content null
    of a tool call stays null, unless the template fails with it or prints "None".
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        limits: TemplateLimits | None = None,
    ) -> None:
        """Compile `source`; raise PromptError if that is not possible.

        special_tokens: what the template may write by name: {"bos_token": "<s>", …}.
        """
        self.limits = limits or TemplateLimits()
        self.spent = Spent()  # by all renderings
        self._special_tokens = dict(special_tokens or {})
        self._source = source
        self._template = _compiled(source, self.limits)

    @classmethod
    def open(cls, engine_dir: Path, special_tokens: Mapping[str, str]) -> "ChatTemplate | None":
        """Read an engine's chat template; None if it has none, EngineError if it is broken."""
        path = engine_dir / TEMPLATE_FILE
        if not path.exists():
            return None
        try:
            source = read_regular_file(path, _MAX_FILE_BYTES).decode("utf-8")
            return cls(source, special_tokens)
        except (PromptError, OSError, ValueError) as error:
            raise EngineError(f"{path}: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text of `messages`, ready to be encoded without special tokens added.

        messages: {"role": …, "content": …} each; the content is a string, or a list of
        {"type": "text", "text": …} parts, which are joined by line ends for templates that read
        strings only. An assistant's message with tool_calls may have the content null, or none.
        More keys, such as tool_calls, reach the template if they are plain JSON.
        add_generation_prompt: end where the assistant's answer begins.
        variables: what else this template reads, such as {"enable_thinking": False, "tools": …}.
        Raises PromptError if the messages, or what the template makes of them, are not usable, and
        LostMessageError where the template does not write what a user says.
        """
        values = self._checked_variables(variables or {})
        known = known_roles(messages, self._source)
        checked = checked_messages(known, self.limits.messages)
        formed = [self._formed(index, message) for index, message in enumerate(checked)]
        text = self._rendered_with_nulls(formed, add_generation_prompt, values)
        lost = lost_message(checked, text)
        if lost is not None:
            raise _loss(lost)
        return text

    @property
    def source(self) -> str:
        """The template itself."""
        return self._source

    def with_tools(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] = ()
    ) -> tuple[list[Message], dict[str, Any]]:
        """A conversation with calls and results of tools as this template takes it, and the
        variables that describe the tools; both are for `render`.

        Raises PromptError for messages that are not usable. Cost: at the first tool of a template
        some thirty renderings of a few words.
        """
        known = known_roles(messages, self._source)
        checked = checked_messages(without_nulls(known), self.limits.messages)
        if not uses_tools(checked, tools):
            return checked, {}
        return with_tools(checked, tools, self.tool_forms)

    @cached_property
    def tool_forms(self) -> ToolForms:
        """What the template does with tools."""

        def render(
            messages: list[Message], add_generation_prompt: bool, variables: Mapping[str, Any]
        ) -> str:
            meter = Meter(self._probe_limits)
            return self._rendered(messages, add_generation_prompt, variables, meter)

        def say(role: str, text: str) -> Any:
            return self._forms[role].of_string(text)

        return find_tool_forms(self._source, render, say)

    def check(self) -> None:
        """Raise PromptError if the template fails, or does not write what a user says.

        A template that refuses plain conversations, since it wants others, is sound.
        """
        question = {"role": "user", "content": "Hello"}
        failures: list[_FailureError] = []
        for messages in ([question], [{"role": "system", "content": "Answer."}, question]):
            try:
                self.render(messages)
                return
            except _FailureError as failure:
                failures.append(failure)
            except RejectedError:
                return
        raise failures[0]

    def _formed(self, index: int, message: Message) -> Message:
        """The message with its content as the template reads it."""
        content = message.get("content")
        if content is None:
            return message
        forms = self._forms[message["role"]]
        if message["role"] == "user" and content and forms.loses_all:
            raise _loss(index)
        formed = forms.of_string(content) if isinstance(content, str) else forms.of_parts(content)
        return {**message, "content": formed}

    @cached_property
    def _forms(self) -> dict[str, ContentForms]:
        """What the template reads, by role."""

        def render(messages: list[Message], add_generation_prompt: bool) -> str:
            return self._rendered(messages, add_generation_prompt, {}, Meter(self._probe_limits))

        return {role: ContentForms(role, render) for role in ROLES}

    def _rendered_with_nulls(
        self, messages: list[Message], add_generation_prompt: bool, values: Mapping[str, Any]
    ) -> str:
        """The text, with an empty text for contents that are null or absent if it needs that."""
        meter = Meter(self.limits)  # of all of them together
        empty = [
            {**each, "content": self._forms[each["role"]].of_string("")}
            if each.get("content") is None
            else each
            for each in messages
        ]
        if empty == messages:
            return self._rendered(messages, add_generation_prompt, values, meter)
        try:
            text = self._rendered(messages, add_generation_prompt, values, meter)
        except RejectedError as failure:
            try:
                return self._rendered(empty, add_generation_prompt, values, meter)
            except PromptError:
                raise failure from None
        if "None" not in text:
            return text
        try:
            other = self._rendered(empty, add_generation_prompt, values, meter)
        except PromptError:
            return text
        return other if other.count("None") < text.count("None") else text

    @property
    def _probe_limits(self) -> TemplateLimits:
        """What one of the two dozen renderings of a few words may use."""
        limits = self.limits
        return replace(
            limits,
            output_characters=limits.output_characters // _PROBE_SHARE,
            work_characters=limits.work_characters // _PROBE_SHARE,
            steps=limits.steps // _PROBE_SHARE,
            seconds=limits.seconds / _PROBE_SHARE,
        )

    def _rendered(
        self,
        messages: list[Message],
        add_generation_prompt: bool,
        values: Mapping[str, Any],
        meter: Meter,
    ) -> str:
        context = {
            **{"tools": None, "documents": None},
            **self._special_tokens,
            **values,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        token = current_meter.set(meter)
        steps, characters = meter.steps, meter.characters
        try:
            return self._generate(context, meter.limits.output_characters)
        except TemplateLimitError as error:
            raise CostlyError(
                f"the chat template {error}; shorten the conversation, or use another template"
            ) from error
        except TemplateRefusalError as error:
            raise RejectedError(
                f"the chat template refuses these messages: {_cut(error)}; change their roles, "
                f"order or keys, or use another template"
            ) from error
        except Exception as error:  # a template can fail in any way that Python can
            raise _FailureError(
                f"the chat template fails with {type(error).__name__}: {_cut(error)}; it expects "
                f"other messages, or needs repair"
            ) from error
        finally:
            current_meter.reset(token)
            self.spent.steps += steps - meter.steps
            self.spent.characters += characters - meter.characters

    def _generate(self, context: Mapping[str, Any], max_characters: int) -> str:
        pieces = []
        num_characters = 0
        for piece in self._template.generate(context):
            pieces.append(piece)
            num_characters += len(piece)
            if num_characters > max_characters:
                raise TemplateLimitError(f"makes a prompt of over {max_characters} characters")
        return "".join(pieces)

    def _checked_variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        faults = [
            f"{name!r} is set by the renderer; leave it out"
            for name in _OWN_VARIABLES
            if name in variables
        ]
        copied = plain_json(variables, "they", faults)
        raise_faults(PromptError, "template variables", faults)
        return copied


def _loss(index: int) -> LostMessageError:
    return LostMessageError(
        f"messages: number {index} is lost: the chat template does not write what the user says in "
        f"it; give the prompt as text, or use another template"
    )


def _compiled(source: str, limits: TemplateLimits) -> Template:
    if len(source) > limits.template_characters:
        raise PromptError(
            f"the chat template has {len(source)} characters, the limit is "
            f"{limits.template_characters}; use a shorter one"
        )
    try:
        return MeteredEnvironment(limits.seconds).from_string(source)
    except TemplateLimitError as error:
        raise PromptError(f"the chat template {error}; use a simpler template") from error
    except TemplateSyntaxError as error:
        raise PromptError(
            f"the chat template does not compile: line {error.lineno}: {error.message}; "
            f"repair it, or use another template"
        ) from error
    except Exception as error:  # nesting too deep for the parser or for Python's compiler
        raise PromptError(
            f"the chat template does not compile: {type(error).__name__}: {error}; "
            f"use a simpler template"
        ) from error


def _cut(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= _MAX_ERROR_CHARACTERS else f"{text[:_MAX_ERROR_CHARACTERS]}…"
