"""Which forms of a message's content a chat template reads, found by rendering sentinels.

A content is a string or a list of parts. Some templates read one form only, and write nothing, or
Python's notation of a list, where they get the other. The user's text must not be lost by that.
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
    """A template does not take these messages; it may take others."""


class CostlyError(PromptError):
    """A template takes more than a few words are worth."""


class ContentForms:
    """What a template does with the content of one role; found when first asked for.

    render: raises RejectedError for messages that the template does not take, and CostlyError where
    asking it further would take too long: it then gets strings.

    `string`: a string is written. `parts`: all text parts of a list are. `first_part`: the text of
    a list of one part is.
    """

    def __init__(self, role: str, render: Render) -> None:
        self._role = role
        self._render = render
        self._renders = False  # whether the template took some conversation
        self._is_costly = False

    @cached_property
    def string(self) -> bool:
        return self._writes(_FIRST, [_FIRST]) or self._is_costly

    @cached_property
    def parts(self) -> bool:
        return self._writes([_text_part(_FIRST), _text_part(_SECOND)], [_FIRST, _SECOND])

    @cached_property
    def first_part(self) -> bool:
        return self.parts or self._writes([_text_part(_FIRST)], [_FIRST])

    @cached_property
    def loses_all(self) -> bool:
        """Whether the template takes the role, but writes its text in no form."""
        return not (self.string or self.first_part) and self._renders

    def of_string(self, text: str) -> Any:
        """The form in which a string reaches the template."""
        return text if self.string or not self.first_part else [_text_part(text)]

    def of_parts(self, parts: Sequence[Any]) -> Any:
        """The form in which a list of text parts reaches the template.

        Templates that read strings only get one with the texts joined by line ends, and those that
        read one part only get one part.
        """
        if self.parts:
            return [_text_part(part) if isinstance(part, str) else part for part in parts]
        joined = "\n".join(part if isinstance(part, str) else part["text"] for part in parts)
        return self.of_string(joined)

    def _writes(self, content: Any, sentinels: Sequence[str]) -> bool:
        """Whether some conversation with this content is rendered with all sentinels in it."""
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
    """Conversations with one message of `content`; the others have strings, or parts.

    The parts count for templates that read nothing else.
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
    """Whether a text holds the sentinel elsewhere than in a list of parts that is printed."""
    everywhere = re.findall(sentinel, text, re.IGNORECASE)
    printed = re.findall(rf"text['\"]\s*:\s*['\"]{sentinel}", text, re.IGNORECASE)
    return len(everywhere) > len(printed)


def _text_part(text: str) -> Mapping[str, str]:
    return {"type": "text", "text": text}
