"""Rendering of messages to prompt text with the model's chat template."""

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

_PROBE_SHARE = 20  # a probe may use this fraction (1/20) of the limits
_MAX_ERROR_CHARACTERS = 1_000  # of a template's own error message
_OWN_VARIABLES = ("messages", "add_generation_prompt")
_MAX_FILE_BYTES = 4 << 20  # room for the largest template in characters of 4 bytes


class LostMessageError(PromptError):
    """A template does not write a user's message."""


class _FailureError(RejectedError):
    """A template failed, as opposed to refusing the messages itself."""


class ChatTemplate:
    """Renders conversations like transformers' `apply_chat_template(tokenize=False)`.

    The template runs in a sandbox that bounds its time and memory (`TemplateLimits`), since it
    comes with a model and is therefore untrusted. Thread-safe.

    Contents are passed in a form that the template reads, see `ContentForms`. The null content of a
    tool call stays null, unless the template fails on it or prints "None".
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        limits: TemplateLimits | None = None,
    ) -> None:
        """Compile a template.

        Args:
            source: The template in Jinja.
            special_tokens: Strings that the template may write by name: {"bos_token": "<s>", …}.
            limits: Bounds of time and memory. None takes the defaults.

        Raises:
            PromptError: If the template does not compile.
        """
        self.limits = limits or TemplateLimits()
        self.spent = Spent()  # sum over all renderings
        self._special_tokens = dict(special_tokens or {})
        self._source = source
        self._template = _compile(source, self.limits)

    @classmethod
    def open(cls, engine_dir: Path, special_tokens: Mapping[str, str]) -> "ChatTemplate | None":
        """Read an engine's chat template; None if it has none. Raises EngineError if broken."""
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
        """Render `messages` to prompt text, to be encoded without adding special tokens.

        Args:
            messages: Objects {"role": …, "content": …}. The content is a string or a list of
                {"type": "text", "text": …} parts, which are joined by line ends for templates that
                only read strings. The content of an assistant's message with tool_calls may be null
                or missing. Other keys, such as tool_calls, are passed on; they must be plain JSON.
            add_generation_prompt: Whether to end with the beginning of an assistant message.
            variables: Further variables of the template, such as
                {"enable_thinking": False, "tools": …}.

        Raises:
            PromptError: If the messages are invalid, or the template cannot render them.
            LostMessageError: If the template does not write the user's last message.
        """
        values = self._check_variables(variables or {})
        known = known_roles(messages, self._source)
        checked = checked_messages(known, self.limits.messages)
        formed = [self._convert_content(index, message) for index, message in enumerate(checked)]
        text = self._render_with_nulls(formed, add_generation_prompt, values)
        lost = lost_message(checked, text)
        if lost is not None:
            raise _loss_error(lost)
        return text

    @property
    def source(self) -> str:
        """Source of the template."""
        return self._source

    def with_tools(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] = ()
    ) -> tuple[list[Message], dict[str, Any]]:
        """Prepare a conversation with tools for `render`.

        The first use of tools costs about thirty renderings of a few words.

        Args:
            messages: The conversation, with calls and results of tools.
            tools: The tools that the model may call.

        Returns:
            The messages in the form that this template takes, and the variables that describe the
            tools.

        Raises:
            PromptError: If the messages are invalid.
        """
        known = known_roles(messages, self._source)
        checked = checked_messages(without_nulls(known), self.limits.messages)
        if not uses_tools(checked, tools):
            return checked, {}
        return with_tools(checked, tools, self.tool_forms)

    @cached_property
    def tool_forms(self) -> ToolForms:
        """How the template handles tools."""

        def render(
            messages: list[Message], add_generation_prompt: bool, variables: Mapping[str, Any]
        ) -> str:
            meter = Meter(self._probe_limits)
            return self._render(messages, add_generation_prompt, variables, meter)

        def say(role: str, text: str) -> Any:
            return self._forms[role].of_string(text)

        return find_tool_forms(self._source, render, say)

    def check(self) -> None:
        """Raise PromptError if the template fails, or does not write a user's message.

        A template that refuses plain conversations because it expects others is valid.
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

    def _convert_content(self, index: int, message: Message) -> Message:
        """Return the message with its content in the form that the template reads."""
        content = message.get("content")
        if content is None:
            return message
        forms = self._forms[message["role"]]
        if message["role"] == "user" and content and forms.loses_all:
            raise _loss_error(index)
        formed = forms.of_string(content) if isinstance(content, str) else forms.of_parts(content)
        return {**message, "content": formed}

    @cached_property
    def _forms(self) -> dict[str, ContentForms]:
        """The content forms that the template reads, by role."""

        def render(messages: list[Message], add_generation_prompt: bool) -> str:
            return self._render(messages, add_generation_prompt, {}, Meter(self._probe_limits))

        return {role: ContentForms(role, render) for role in ROLES}

    def _render_with_nulls(
        self, messages: list[Message], add_generation_prompt: bool, values: Mapping[str, Any]
    ) -> str:
        """Render, with empty strings for null or missing contents if the template needs them."""
        meter = Meter(self.limits)  # shared by all attempts
        empty = [
            {**each, "content": self._forms[each["role"]].of_string("")}
            if each.get("content") is None
            else each
            for each in messages
        ]
        if empty == messages:
            return self._render(messages, add_generation_prompt, values, meter)
        try:
            text = self._render(messages, add_generation_prompt, values, meter)
        except RejectedError as failure:
            try:
                return self._render(empty, add_generation_prompt, values, meter)
            except PromptError:
                raise failure from None
        if "None" not in text:
            return text
        try:
            other = self._render(empty, add_generation_prompt, values, meter)
        except PromptError:
            return text
        return other if other.count("None") < text.count("None") else text

    @property
    def _probe_limits(self) -> TemplateLimits:
        """Limits of one of the two dozen probe renderings."""
        limits = self.limits
        return replace(
            limits,
            output_characters=limits.output_characters // _PROBE_SHARE,
            work_characters=limits.work_characters // _PROBE_SHARE,
            steps=limits.steps // _PROBE_SHARE,
            seconds=limits.seconds / _PROBE_SHARE,
        )

    def _render(
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
                f"the chat template fails with {type(error).__name__}: {_cut(error)}; pass "
                f"other messages, or repair the template"
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

    def _check_variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        faults = [
            f"{name!r} is set by the renderer; leave it out"
            for name in _OWN_VARIABLES
            if name in variables
        ]
        copied = plain_json(variables, "they", faults)
        raise_faults(PromptError, "template variables", faults)
        return copied


def _loss_error(index: int) -> LostMessageError:
    return LostMessageError(
        f"messages: number {index} is lost: the chat template does not write the text of this user "
        f"message; give the prompt as text, or use another template"
    )


def _compile(source: str, limits: TemplateLimits) -> Template:
    if len(source) > limits.template_characters:
        raise PromptError(
            f"the chat template has {len(source)} characters; the limit is "
            f"{limits.template_characters}: use a shorter one"
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
