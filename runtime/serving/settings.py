"""Settings of the server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ServerSettings:
    """Names, limits and access rules of a server."""

    model_name: str  # name of the model
    other_names: Sequence[str] = ()  # other valid names of the model
    api_key: str | None = None  # key that clients must send; None: no key is needed
    num_waiting: int = 32  # requests that may wait, not counting those being answered
    num_running: int = 32  # maximum number of answers generated at the same time
    answer_tokens: int = 1024  # length limit of answers whose request has none
    max_body_bytes: int = 1 << 20
    max_messages: int = 256  # in a conversation
    request_seconds: float = 600.0  # from arrival to the end of the answer, which is then cut
    allowed_hosts: Sequence[str] = ("*",)  # names allowed in the Host header; "*": any
    allowed_origins: Sequence[str] = ()  # origins of web pages that may use the server
    defaults: Mapping[str, Any] = field(default_factory=dict)  # fields of Options

    @property
    def names(self) -> list[str]:
        """The valid names of the model."""
        return list(dict.fromkeys((self.model_name, *self.other_names)))
