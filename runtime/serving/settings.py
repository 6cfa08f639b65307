"""What a server is told when it starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server, and who may use it."""

    model_name: str  # that clients ask for
    other_names: Sequence[str] = ()  # that they may ask for too
    api_key: str | None = None  # that they have to send; None: none
    num_waiting: int = 32  # requests in line beside those that are answered
    num_running: int = 32  # answers that are given at once
    answer_tokens: int = 1024  # of an answer whose request names no limit
    max_body_bytes: int = 1 << 20
    max_messages: int = 256  # of a conversation
    request_seconds: float = 600.0  # from coming to the end of the answer; then it is cut
    allowed_hosts: Sequence[str] = ("*",)  # names in the Host header
    allowed_origins: Sequence[str] = ()  # web pages that may use it
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of Options

    @property
    def names(self) -> list[str]:
        """All names of the model."""
        return list(dict.fromkeys((self.model_name, *self.other_names)))
