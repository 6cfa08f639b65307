"""Support of newer roles of messages by older templates."""

from collections.abc import Mapping, Sequence
from typing import Any

DEVELOPER, SYSTEM = "developer", "system"


def known_roles(messages: Any, template: str) -> Any:
    """Replace the role "developer" by "system", unless the template names it.

    OpenAI's interface calls the system message of newer models a developer message. A value that is
    not a list of messages is returned unchanged.
    """
    if DEVELOPER in template or isinstance(messages, (str, Mapping)):
        return messages
    if not isinstance(messages, Sequence):
        return messages
    return [
        {**message, "role": SYSTEM}
        if isinstance(message, Mapping) and message.get("role") == DEVELOPER
        else message
        for message in messages
    ]
