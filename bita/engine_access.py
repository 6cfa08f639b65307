"""Exclusive writing of an engine, whose readers see either the old engine or the new one."""

import errno
import inspect
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from bita.directory_swap import complete
from bita.engine_place import INCOMING, Place
from bita.errors import EngineError
from bita.manifest import MANIFEST_FILE
from bita.writer_lock import release, sole_writer, try_sole_writer

P = ParamSpec("P")
T = TypeVar("T")
MAX_READS = 10  # attempts to read an engine that is replaced during each of them
PATIENCE_S = 10.0  # for the renames of a living writer, which take milliseconds


@contextmanager
def writing(out: str | Path) -> Iterator[Place]:
    """Be the only writer of the engine at `out` while the block runs; wait for another writer.

    The same thread may nest it. Remains of killed writers are completed or removed first.
    Raises EngineError if `out` cannot be written.
    """
    place = Place.of(out)
    with ExitStack() as stack:
        try:
            place.prefix.parent.mkdir(parents=True, exist_ok=True)
            is_first = stack.enter_context(sole_writer(place.lock, str(out)))
            complete(place.target)
        except OSError as error:
            raise unwritable(out, error) from error
        if is_first:
            for path in place.leftovers():
                shutil.rmtree(path, ignore_errors=True)
        yield place


def unwritable(out: str | Path, error: OSError) -> EngineError:
    """Return the error that explains why the engine at `out` cannot be written."""
    where, fix = error.filename2 or error.filename or out, "fix that, or choose another OUT"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "make its directory writable, or choose another OUT"
    return EngineError(f"cannot write the engine {out}: {error.strerror or error}: {where}; {fix}")


def undisturbed(read: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that reads the engine at its argument `path`, so that it sees one engine.

    If a writer replaces the engine during the call, the result or error is discarded and the
    function is called again. After MAX_READS such calls, writers are locked out for a last one.
    Raises EngineError if they cannot be locked out.
    """
    signature = inspect.signature(read)

    @wraps(read)
    def read_again(*args: P.args, **kwargs: P.kwargs) -> T:
        path = Path(signature.bind(*args, **kwargs).arguments["path"])
        for _ in range(MAX_READS):
            before = _state(path)
            try:
                result = read(*args, **kwargs)
            except Exception:
                if _state(path) == before:
                    raise
                continue
            if _state(path) == before:
                return result
        with _lock_out_writers(path):
            return read(*args, **kwargs)

    return read_again


@contextmanager
def _lock_out_writers(path: Path) -> Iterator[None]:
    place = Place.of(path)
    with ExitStack() as stack:
        try:
            stack.enter_context(sole_writer(place.lock, str(path)))
            complete(place.target)
        except OSError as error:
            raise EngineError(
                f"engine {path} was replaced again and again while it was read ({error}); try "
                "again when its writers are done"
            ) from error
        yield


def _state(path: Path) -> tuple[int, ...] | None:
    """Return values that change with every writer; None if there is no engine."""
    _settle(path)
    try:
        directory, manifest = path.stat(), (path / MANIFEST_FILE).stat()
    except OSError:
        return None
    of_directory = directory.st_dev, directory.st_ino
    return (*of_directory, manifest.st_ino, manifest.st_mtime_ns, manifest.st_size)


def _settle(path: Path) -> None:
    """Wait until no files are being moved into place; complete what a killed writer left."""
    if not os.path.isdir(path / INCOMING):
        return
    place, end = Place.of(path), time.monotonic() + PATIENCE_S
    while os.path.isdir(place.target / INCOMING):
        try:
            if try_sole_writer(place.lock):
                try:
                    complete(place.target)
                finally:
                    release(place.lock)
        except OSError as error:
            raise _half_replaced(path, str(error)) from error
        if time.monotonic() > end:
            raise _half_replaced(path, "its writer does not continue")
        time.sleep(0.01)


def _half_replaced(path: Path, reason: str) -> EngineError:
    return EngineError(
        f"engine {path} is being replaced, or its writer was killed in the middle, and that cannot "
        f"be completed from here ({reason}); run as a user who may write it: bita inspect {path}"
    )
