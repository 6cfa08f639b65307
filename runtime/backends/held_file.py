"""A file that a library has mapped into memory, held open to see whether somebody writes to it."""

import os
from pathlib import Path
from weakref import finalize

from bita.engine_files import sha256_of
from bita.errors import EngineError
from bita.file_marks import FileMark, mark_of


class HeldFile:
    """Holds the file that is at `path` now.

    Another file in its place does no harm: who has the old one open keeps it. But what is written
    into the old one is seen by all who have it mapped, and reading a mapped page beyond its end
    kills the process. `check` is for before and after each use, so that nothing is made of other
    content; only a file that is cut while it is read can still kill.

    sha256: of its content. Raises EngineError if it cannot be opened.
    """

    def __init__(self, path: Path, sha256: str) -> None:
        self._path = path
        self._sha256 = sha256
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise EngineError(
                f"{path} cannot be read ({error.strerror or error}); rebuild the engine"
            ) from error
        finalize(self, os.close, self._descriptor)
        self._seen = self._state()
        self._num_bytes = self._seen[0]

    def check_loaded(self) -> None:
        """Raise EngineError unless it is still the file at `path`, for after that was loaded."""
        if mark_of(self._path) != FileMark.of(os.fstat(self._descriptor)):
            raise EngineError(
                f"{self._path} was changed while it was loaded; open the engine again"
            )
        self.check()

    def check(self) -> None:
        """Raise EngineError if its content changed. Cost: 1 to 4 µs.

        Where only its times or links changed it is hashed again, about a second per GB.
        """
        state = self._state()
        if state == self._seen:
            return
        if state[0] != self._num_bytes or self._hash() != self._sha256:
            raise EngineError(
                f"{self._path} was changed while the engine was open; open the engine again"
            )
        self._seen = state

    def _state(self) -> tuple[int, int, int]:
        """Size, and when content and anything else of it was changed."""
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _hash(self) -> str:
        with open(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            return sha256_of(file)
