"""Whether the files that were read are still those that were checked."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bita.errors import EngineError


@dataclass(frozen=True)
class FileMark:
    """What changes when a file is replaced or written to.

    Two writes within one tick of the system's clock (10 ms at most) are not told apart, and a write
    that puts the time back is not seen.
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
    """The marks of what is in a directory, by name; links count as what they lead to."""
    try:
        names = os.listdir(directory)
    except OSError:
        return {}  # whoever opens it says why
    marks = {name: mark_of(directory / name) for name in names}
    return {name: mark for name, mark in marks.items() if mark is not None}


def mark_of(path: Path) -> FileMark | None:
    """The mark of a file; None if it is not there."""
    try:
        return FileMark.of(path.stat())
    except OSError:
        return None


def check_unchanged(directory: Path, names: Iterable[str], before: Marks) -> None:
    """Raise EngineError that names the first file which has another mark than `before`."""
    for name in names:
        if mark_of(directory / name) != before.get(name):
            raise EngineError(
                f"{directory / name} was changed while the engine was opened; open it again"
            )
