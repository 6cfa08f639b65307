"""JSON Lines files that survive a kill: lines are appended, and a partial last line is removed."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bita.errors import ModelError
from bita.json_values import parse_json, shown


class JsonLinesFile:
    """Starts or continues a file; a partial last line is removed from the file.

    `lines` are the complete lines at the time of opening, without line ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = list(whole_lines(path)) if path.exists() else []
        self._file = path.open("ab")
        self._file.truncate(sum(len(line) + 1 for line in self.lines))

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one line and flush it to the operating system."""
        text = json.dumps(entry, separators=(",", ":"), ensure_ascii=False)
        self._file.write(text.encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; may be called more than once."""
        self._file.close()


def whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the complete lines of a file, without line ends, reading one at a time."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1]


def parse_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """Return the JSON object of a line. Raises ModelError that names file and line."""
    try:
        data = parse_json(line)
    except ValueError as error:
        raise ModelError(
            f"{path}:{number} is not JSON ({error}); delete the line, or generate the data again"
        ) from error
    if not isinstance(data, dict):
        raise ModelError(f"{path}:{number} holds {shown(data)}, not an object")
    return data
