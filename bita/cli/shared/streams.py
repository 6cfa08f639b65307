"""Standard input, output and error: what they cannot hold, and readers that have gone."""

import contextlib
import os
import select
import sys
from typing import TextIO

MAX_TEXT = 1 << 24  # characters read from standard input


def prepare_streams() -> None:
    """Let output write what its encoding lacks as escapes, and input give what is not text.

    Without it a character of an answer, or a byte of a file's name, ends the program.
    """
    for stream, errors in (
        *((sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")),
        (sys.stdin, "surrogateescape"),  # for `as_unicode`
    ):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)


def as_unicode(text: str, encoding: str | None = None) -> str:
    """A text of the system as Unicode: bytes that it could not decode are read as UTF-8.

    encoding: of the stream that it comes from; None: of arguments. Raises UnicodeError.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        data = os.fsencode(text) if encoding is None else text.encode(encoding, "surrogateescape")
        return data.decode("utf-8")
    return text


def reader_is_gone() -> bool:
    """Whether output goes to a pipe whose reader has closed it."""
    return any(_is_unread(stream) for stream in (sys.stdout, sys.stderr) if stream)


def flush_or_discard() -> None:
    """Write what is left of the output, or drop it where that is not possible.

    Else the interpreter would try again when it ends, and complain.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # it was closed before the program began
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as devnull:
                os.dup2(devnull.fileno(), stream.fileno())


def _is_unread(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no file, or a system without poll
        return False
