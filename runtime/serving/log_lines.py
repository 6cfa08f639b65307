"""Lines of the server's log: short, and without control characters, whatever a client sends."""

import logging

MAX_MESSAGE = 1000  # characters
MAX_TRACEBACK = 8000  # of a fault, its end is kept


class LogLines(logging.Formatter):
    """Time, logger, level and message on one line; a traceback follows, indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(name)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        message = record.message
        if len(message) > MAX_MESSAGE:
            message = f"{message[:MAX_MESSAGE]}... ({len(message)} characters)"
        record.message = visible(message.strip())
        return super().formatMessage(record)

    def formatException(self, exc_info: object) -> str:  # noqa: N802
        text = super().formatException(exc_info)  # type: ignore[arg-type]
        if len(text) > MAX_TRACEBACK:
            text = f"... {text[-MAX_TRACEBACK:]}"
        return "\n".join(f"  {visible(line)}" for line in text.splitlines())


def visible(text: str) -> str:
    """Text with what is not printable written as an escape, line ends too."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
