"""A file that a library has mapped into memory, held open to detect changes to it."""

import os
from pathlib import Path
from weakref import finalize

from bita.engine_files import sha256_of
from bita.errors import EngineError
from bita.file_marks import FileMark, mark_of


class HeldFile:
    """Holds the file that is at `path` now.

    Replacing the file is harmless: whoever has the old one open keeps it. But writes to the old
    file are visible in every mapping of it, and reading a mapped page beyond its end kills the
    process. Call `check` before and after each use, so that no result is based on changed content.
    Only truncating the file during a read can still kill the process.

    sha256: hash of its content.

    Raises EngineError if the file cannot be opened.
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
        """Raise EngineError unless it is still the file at `path`; call this after loading."""
        if mark_of(self._path) != FileMark.of(os.fstat(self._descriptor)):
            raise EngineError(
                f"{self._path} was changed while it was loaded; open the engine again"
            )
        self.check()

    def check(self) -> None:
        """Raise EngineError if the content has changed. The check takes 1 to 4 µs.

        If only times or links have changed, the file is hashed again, at about a second per GB.
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
        """Return the size, and when content and metadata were last changed."""
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _hash(self) -> str:
        with open(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            return sha256_of(file)
