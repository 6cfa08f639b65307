"""Roles of messages that newer interfaces know, for templates that do not."""

from collections.abc import Mapping, Sequence
from typing import Any

DEVELOPER, SYSTEM = "developer", "system"


def known_roles(messages: Any, template: str) -> Any:
    """The messages, with "system" for the role "developer" unless the template names that role.

    OpenAI's interface calls the system message of newer models a developer's. What is not a list
    of messages is returned as it is.
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
