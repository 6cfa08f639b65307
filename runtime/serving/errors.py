"""Refusals in the form that OpenAI's clients know."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bita.errors import PromptError, PromptTooLongError

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


@contextmanager
def blaming(param: str) -> Iterator[None]:
    """Name the field of a request that a PromptError is about."""
    try:
        yield
    except PromptError as error:
        raise RequestError(400, str(error), code=code_of(error), param=param) from error


def code_of(refusal: PromptError) -> str | None:
    """What clients look for where a prompt is too long."""
    return "context_length_exceeded" if isinstance(refusal, PromptTooLongError) else None


def _short(text: str, most: int) -> str:
    """At most so many characters, with surrogates written out."""
    text = text[: most + 1].encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= most else f"{text[: most - 3]}..."
