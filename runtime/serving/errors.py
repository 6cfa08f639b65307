"""Refusals in the form that OpenAI's clients know."""

from dataclasses import dataclass, field
from typing import Any

MAX_MESSAGE, MAX_PARAM = 1000, 100  # characters, of up to six bytes in JSON each


@dataclass
class RequestError(Exception):
    """A request that is not answered. status: of HTTP. param: the field at fault."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """What is sent."""
        return error_body(self.message, self.kind, self.code, self.param)


def error_body(
    message: str, kind: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """The JSON of an error: one that UTF-8 can hold, and short whatever the request held."""
    param = None if param is None else _short(param, MAX_PARAM)
    message = _short(message, MAX_MESSAGE)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _short(text: str, most: int) -> str:
    """At most so many characters, with surrogates written out."""
    text = text[: most + 1].encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= most else f"{text[: most - 3]}..."
