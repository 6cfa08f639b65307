"""Standard input, output and error: characters that they cannot hold, and closed readers."""

import contextlib
import os
import select
import sys
from typing import TextIO

MAX_TEXT = 1 << 24  # characters read from standard input


def prepare_streams() -> None:
    """Write characters that the encoding of the output lacks as escapes, and read any bytes.

    Otherwise a character of an answer, or a byte of a file name, would end the program.
    """
    for stream, errors in (
        *((sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")),
        (sys.stdin, "surrogateescape"),  # for `as_unicode`
    ):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)


def as_unicode(text: str, encoding: str | None = None) -> str:
    """Decode the bytes of a text that the system could not decode, as UTF-8.

    Args:
        text: A text with surrogates in place of such bytes.
        encoding: Encoding of the stream that it comes from; None for an argument.

    Raises:
        UnicodeError: if the bytes are not UTF-8.
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
    """Write the rest of the output, or drop it where that is not possible.

    Otherwise the interpreter would try again at its end, and complain.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # it was closed before the program started
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
    except (OSError, ValueError, AttributeError):  # not a file, or a system without poll
        return False
