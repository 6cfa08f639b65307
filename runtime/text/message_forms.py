"""Detects which forms of a message's content a chat template reads, by rendering sentinels.

A content is a string or a list of parts. Some templates read only one form, and given the other
they write nothing, or Python's notation of a list. The user's text must not be lost that way.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from bita.errors import PromptError

Message = dict[str, Any]
Render = Callable[[list[Message], bool], str]  # messages, add_generation_prompt

_FIRST, _SECOND = "BitaPart4821", "BitaPart7350"
_CALL = {
    "id": "call00000",
    "type": "function",
    "function": {"name": "look", "arguments": {"at": "it"}},
}


class RejectedError(PromptError):
    """A template refuses these messages; it may accept others."""


class CostlyError(PromptError):
    """A template is too expensive for a few words."""


class ContentForms:
    """The forms of content that a template reads for one role, detected on first use."""

    def __init__(self, role: str, render: Render) -> None:
        """Prepare the detection.

        Args:
            role: The role of the messages.
            render: Renders a conversation. Raises RejectedError if the template refuses it, and
                CostlyError if further attempts would take too long; strings are then used.
        """
        self._role = role
        self._render = render
        self._renders = False  # whether the template accepted some conversation
        self._is_costly = False

    @cached_property
    def string(self) -> bool:
        """Whether the template writes a string."""
        return self._writes(_FIRST, [_FIRST]) or self._is_costly

    @cached_property
    def parts(self) -> bool:
        """Whether the template writes all text parts of a list."""
        return self._writes([_text_part(_FIRST), _text_part(_SECOND)], [_FIRST, _SECOND])

    @cached_property
    def first_part(self) -> bool:
        """Whether the template writes the text of a list of one part."""
        return self.parts or self._writes([_text_part(_FIRST)], [_FIRST])

    @cached_property
    def loses_all(self) -> bool:
        """Whether the template accepts the role, but writes its text in neither form."""
        return not (self.string or self.first_part) and self._renders

    def of_string(self, text: str) -> Any:
        """Return a string in the form that the template reads."""
        return text if self.string or not self.first_part else [_text_part(text)]

    def of_parts(self, parts: Sequence[Any]) -> Any:
        """Return a list of text parts in the form that the template reads.

        The texts are joined by line ends for templates that read only a string or a single part.
        """
        if self.parts:
            return [_text_part(part) if isinstance(part, str) else part for part in parts]
        joined = "\n".join(part if isinstance(part, str) else part["text"] for part in parts)
        return self.of_string(joined)

    def _writes(self, content: Any, sentinels: Sequence[str]) -> bool:
        """Return whether some conversation with this content is rendered with all sentinels."""
        for messages in _conversations(self._role, content):
            if self._is_costly:
                return False
            try:
                text = self._render(messages, self._role in ("user", "tool"))
            except RejectedError:
                continue
            except CostlyError:
                self._is_costly = True
                return False
            self._renders = True
            if all(_is_written(sentinel, text) for sentinel in sentinels):
                return True
        return False


def _conversations(role: str, content: Any) -> list[list[Message]]:
    """Return conversations with one message of `content`; the others have strings, or parts.

    Parts are for templates that read nothing else.
    """
    message: Message = {"role": role, "content": content}
    found = []
    for other in ("Hi", [_text_part("Hi")]):
        user: Message = {"role": "user", "content": other}
        system: Message = {"role": "system", "content": other}
        nothing = "" if isinstance(other, str) else [_text_part("")]
        call: Message = {"role": "assistant", "content": nothing, "tool_calls": [_CALL]}
        found += {
            "system": [[message, user]],
            "developer": [[message, user]],
            "user": [[message], [system, message]],
            "assistant": [[user, message], [user, message, user]],
            "tool": [[user, call, {**message, "name": "look", "tool_call_id": "call00000"}]],
        }[role]
    return found


def _is_written(sentinel: str, text: str) -> bool:
    """Return whether a text has the sentinel outside of a printed list of parts."""
    everywhere = re.findall(sentinel, text, re.IGNORECASE)
    printed = re.findall(rf"text['\"]\s*:\s*['\"]{sentinel}", text, re.IGNORECASE)
    return len(everywhere) > len(printed)


def _text_part(text: str) -> Mapping[str, str]:
    return {"type": "text", "text": text}
