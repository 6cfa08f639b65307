"""Prompts of conversations with tools, template variables and answers to be continued."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bita.errors import PromptError
from bita.runtime.text.chat_template import ChatTemplate
from bita.runtime.text.messages import Message, text_of
from bita.runtime.text.prompt_encoder import PromptEncoder
from bita.runtime.text.reasoning import Reasoning, reasoning_of
from bita.runtime.text.tools import Tool

_END = "\ue001bita-end\ue001"  # marks the end of a message that is to be continued


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as the model reads it."""

    text: str
    token_ids: Sequence[int] = field(repr=False)  # of `text`
    reasoning: Reasoning | None = None  # marks of the answer's thinking; None: no thinking


@dataclass(frozen=True)
class PromptWish:
    """Options of rendering a conversation."""

    tools: Sequence[Tool] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)  # e.g. {"enable_thinking": False}
    begins_answer: bool = True  # end with the beginning of an assistant message
    continues_last: bool = False  # end within the last (assistant) message, to continue it


def chat_prompt(
    encoder: PromptEncoder, messages: Sequence[Mapping[str, Any]], wish: PromptWish
) -> ChatPrompt:
    """Render and encode a conversation. Raises PromptError."""
    template = encoder.template
    if template is None:
        raise PromptError("this engine's model has no chat template; give the prompt as text")
    changed, described = template.with_tools(messages, wish.tools)
    variables = {**wish.variables, **described}
    if wish.continues_last:
        text = _render_continued(template, changed, variables)
    else:
        text = template.render(changed, wish.begins_answer, variables)
    token_ids = encoder.codec.encode(text, add_special_tokens=False)
    begun = text_of(changed[-1].get("content")) if wish.continues_last else None
    return ChatPrompt(text, token_ids, reasoning_of(template.source, text, begun))


def _render_continued(
    template: ChatTemplate, messages: list[Message], variables: Mapping[str, Any]
) -> str:
    """Render the prompt up to the end of the last message's text."""
    last = messages[-1]
    if last["role"] != "assistant" or last.get("tool_calls"):
        what = "calls tools" if last.get("tool_calls") else f"is of role {last['role']}"
        raise PromptError(
            f"the last message {what}, but only a text of the assistant can be continued; put one "
            "there, or leave out continue_final_message"
        )
    marked = {**last, "content": f"{text_of(last.get('content'))}{_END}"}
    text = template.render([*messages[:-1], marked], False, variables)
    if text.count(_END) != 1:
        raise PromptError(
            "the chat template does not write the last message unchanged, so it cannot be "
            "continued; leave out continue_final_message"
        )
    return text[: text.index(_END)]
