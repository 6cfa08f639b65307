"""Errors in the format of OpenAI's interface."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bita.errors import PromptError, PromptTooLongError

MAX_MESSAGE, MAX_PARAM = 1000, 100  # characters, each at most six bytes in JSON


@dataclass
class RequestError(Exception):
    """A request that is refused."""

    status: int  # HTTP status
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None  # the invalid field
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """Return the body of the response."""
        return error_body(self.message, self.kind, self.code, self.param)


def error_body(
    message: str, kind: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """Return the JSON of an error: short and valid UTF-8, whatever the request contained."""
    param = None if param is None else _short(param, MAX_PARAM)
    message = _short(message, MAX_MESSAGE)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@contextmanager
def blaming(param: str) -> Iterator[None]:
    """Turn a PromptError into a RequestError that names a field of the request."""
    try:
        yield
    except PromptError as error:
        raise RequestError(400, str(error), code=code_of(error), param=param) from error


def code_of(refusal: PromptError) -> str | None:
    """Return the code that clients expect if a prompt is too long; None for other errors."""
    return "context_length_exceeded" if isinstance(refusal, PromptTooLongError) else None


def _short(text: str, limit: int) -> str:
    """Cut a text to at most `limit` characters, with surrogates escaped."""
    text = text[: limit + 1].encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
