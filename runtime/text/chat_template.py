"""Messages to prompt text, by the chat template that came with the model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateSyntaxError

from bita.engine import TEMPLATE_FILE
from bita.errors import EngineError, PromptError, raise_faults
from bita.runtime.text.template_filters import TemplateRefusalError
from bita.runtime.text.template_meter import (
    Meter,
    TemplateLimitError,
    TemplateLimits,
    current_meter,
)
from bita.runtime.text.template_sandbox import MeteredEnvironment

ROLES = ("system", "user", "assistant", "tool")
_MAX_ERROR_CHARACTERS = 1_000  # of what a template says in an error
_OWN_VARIABLES = ("messages", "add_generation_prompt")


class ChatTemplate:
    """Renders conversations as transformers' `apply_chat_template(tokenize=False)` does.

    The template runs in a sandbox that bounds its time and memory (`TemplateLimits`), since it
    comes with a model, and thereby from a stranger. One object may be used by several threads.
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
        self._special_tokens = dict(special_tokens or {})
        self._template = _compiled(source, self.limits)

    @classmethod
    def open(cls, engine_dir: Path, special_tokens: Mapping[str, str]) -> "ChatTemplate | None":
        """Read an engine's chat template; None if it has none, EngineError if it is broken."""
        path = engine_dir / TEMPLATE_FILE
        if not path.is_file():
            return None
        try:
            return cls(path.read_text(encoding="utf-8"), special_tokens)
        except (PromptError, UnicodeDecodeError) as error:
            raise EngineError(f"{path}: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text of `messages`, ready to be encoded without special tokens added.

        messages: {"role": …, "content": …} each; the content is a string, or a list of
        {"type": "text", "text": …} parts, which are joined by line ends. More keys, such as
        tool_calls, reach the template if they are plain JSON.
        add_generation_prompt: end where the assistant's answer begins.
        variables: what else this template reads, such as {"enable_thinking": False, "tools": …}.
        Raises PromptError if the messages, or what the template makes of them, are not usable.
        """
        context = {
            **{"tools": None, "documents": None},
            **self._special_tokens,
            **self._checked_variables(variables or {}),
            "messages": self._checked_messages(messages),
            "add_generation_prompt": add_generation_prompt,
        }
        token = current_meter.set(Meter(self.limits))
        try:
            return self._generate(context)
        except TemplateLimitError as error:
            raise PromptError(
                f"the chat template {error}; shorten the conversation, or use another template"
            ) from error
        except TemplateRefusalError as error:
            raise PromptError(
                f"the chat template refuses these messages: {_cut(error)}; change their roles, "
                f"order or keys, or use another template"
            ) from error
        except Exception as error:  # a template can fail in any way that Python can
            raise PromptError(
                f"the chat template fails with {type(error).__name__}: {_cut(error)}; it expects "
                f"other messages, or needs repair"
            ) from error
        finally:
            current_meter.reset(token)

    def _generate(self, context: Mapping[str, Any]) -> str:
        pieces = []
        num_characters = 0
        for piece in self._template.generate(context):
            pieces.append(piece)
            num_characters += len(piece)
            if num_characters > self.limits.output_characters:
                raise TemplateLimitError(
                    f"makes a prompt of over {self.limits.output_characters} characters"
                )
        return "".join(pieces)

    def _checked_messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
            raise PromptError(
                f"messages is of type {type(messages).__name__}; "
                'pass a list of {"role": "user", "content": "…"}'
            )
        if not 0 < len(messages) <= self.limits.messages:
            raise PromptError(
                f"there are {len(messages)} messages; pass 1 to {self.limits.messages}"
            )
        faults: list[str] = []
        checked = [_checked_message(i, message, faults) for i, message in enumerate(messages)]
        raise_faults(PromptError, "messages", faults)
        return checked

    def _checked_variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        faults = [
            f"{name!r} is set by the renderer; leave it out"
            for name in _OWN_VARIABLES
            if name in variables
        ]
        copied = _plain(dict(variables), "they", faults)
        raise_faults(PromptError, "template variables", faults)
        return dict(copied)


def _compiled(source: str, limits: TemplateLimits) -> Template:
    if len(source) > limits.template_characters:
        raise PromptError(
            f"the chat template has {len(source)} characters, the limit is "
            f"{limits.template_characters}; use a shorter one"
        )
    try:
        return MeteredEnvironment().from_string(source)
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


def _checked_message(index: int, message: Any, faults: list[str]) -> dict[str, Any]:
    """A plain copy of one message with its content as a string; adds what is wrong to `faults`."""
    if not isinstance(message, Mapping):
        faults.append(f'number {index} is {_short(message)}; pass {{"role": …, "content": …}}')
        return {}
    role = message.get("role")
    if role not in ROLES:
        faults.append(f"number {index} has the role {_short(role)}; use one of {', '.join(ROLES)}")
    copied = _plain({key: message[key] for key in message if key != "content"}, index, faults)
    return {**copied, "content": _content(index, message, faults)}


def _content(index: int, message: Mapping[str, Any], faults: list[str]) -> str:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return ""
    parts = [content] if isinstance(content, str) else content
    if not isinstance(parts, Sequence):
        faults.append(f"number {index} has the content {_short(content)}; pass a string")
        return ""
    texts = [_part_text(part) for part in parts]
    for part, text in zip(parts, texts, strict=True):
        if text is None:
            faults.append(
                f"number {index} has the content part {_short(part)}; "
                'only {"type": "text", "text": "…"} parts are supported'
            )
    return "\n".join(text for text in texts if text is not None)


def _part_text(part: Any) -> str | None:
    if isinstance(part, Mapping) and part.get("type") == "text":
        part = part.get("text")
    else:
        part = part if isinstance(part, str) else None
    return part if isinstance(part, str) else None


def _plain(value: dict[str, Any], index: int | str, faults: list[str]) -> dict[str, Any]:
    """A copy made of JSON types only: other objects have methods that a sandbox cannot know."""
    try:
        copied: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        faults.append(
            f"number {index} is not plain JSON ({error}); pass strings, numbers and lists"
        )
        return {}
    return copied


def _cut(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= _MAX_ERROR_CHARACTERS else f"{text[:_MAX_ERROR_CHARACTERS]}…"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
