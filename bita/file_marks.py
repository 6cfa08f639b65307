"""Detection of files that were changed between being checked and being read."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bita.errors import EngineError


@dataclass(frozen=True)
class FileMark:
    """Attributes of a file that change when it is replaced or written to.

    Two writes within one tick of the system's clock (at most 10 ms) cannot be distinguished, and a
    write that restores the modification time goes unnoticed.
    """

    device: int
    inode: int
    num_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileMark":
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


Marks = Mapping[str, FileMark]


def marks_of(directory: Path) -> Marks:
    """Return the marks of everything in a directory, by name; links are followed."""
    try:
        names = os.listdir(directory)
    except OSError:
        return {}  # opening the directory reports why
    marks = {name: mark_of(directory / name) for name in names}
    return {name: mark for name, mark in marks.items() if mark is not None}


def mark_of(path: Path) -> FileMark | None:
    """Return the mark of a file; None if it does not exist."""
    try:
        return FileMark.of(path.stat())
    except OSError:
        return None


def check_unchanged(directory: Path, names: Iterable[str], before: Marks) -> None:
    """Raise EngineError for the first file whose mark differs from `before`."""
    for name in names:
        if mark_of(directory / name) != before.get(name):
            raise EngineError(
                f"{directory / name} was changed while the engine was opened; open it again"
            )
