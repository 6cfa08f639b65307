"""Format of the server's log: short lines without control characters, whatever a client sends."""

import logging

from bita.json_values import printable

MAX_MESSAGE = 1000  # characters
MAX_TRACEBACK = 8000  # characters; the end is kept


class LogLines(logging.Formatter):
    """Time, logger, level and message on one line; a traceback follows, indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(name)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        message = record.message.strip()
        if len(message) > MAX_MESSAGE:
            message = f"{message[:MAX_MESSAGE]}... ({len(message)} characters)"
        record.message = printable(message)
        return super().formatMessage(record)

    def formatException(self, exc_info: object) -> str:  # noqa: N802
        text = super().formatException(exc_info)  # type: ignore[arg-type]
        if len(text) > MAX_TRACEBACK:
            text = f"... {text[-MAX_TRACEBACK:]}"
        return "\n".join(f"  {printable(line)}" for line in text.splitlines())
