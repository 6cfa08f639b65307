"""Who may write an engine, and what its readers see meanwhile: the engine of before or of after."""

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
MAX_READS = 10  # of an engine that others replace meanwhile
PATIENCE_S = 10.0  # for renames of a living writer, which take milliseconds


@contextmanager
def writing(out: str | Path) -> Iterator[Place]:
    """Be the only writer of the engine at `out` while the block runs; waits for another one.

    The same thread may nest it. What killed writers left is completed or removed first. Raises
    EngineError if nothing can be written there.
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
    """The error that says why the engine at `out` cannot be written."""
    where, fix = error.filename2 or error.filename or out, "choose another OUT, or mend that"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "make its directory writable, or choose another OUT"
    return EngineError(f"cannot write the engine {out}: {error.strerror or error}: {where}; {fix}")


def undisturbed(read: Callable[P, T]) -> Callable[P, T]:
    """Make a function that reads the engine at its argument `path` see one engine.

    Where a writer replaced the engine meanwhile, what was read or raised is forgotten, and the
    function called again; where that does not end, with the writers kept away. Raises EngineError
    if they cannot be.
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
        with _writers_kept_away(path):
            return read(*args, **kwargs)

    return read_again


@contextmanager
def _writers_kept_away(path: Path) -> Iterator[None]:
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
    """What differs after every writer; None where there is no engine."""
    _settle(path)
    try:
        directory, manifest = path.stat(), (path / MANIFEST_FILE).stat()
    except OSError:
        return None
    of_directory = directory.st_dev, directory.st_ino
    return (*of_directory, manifest.st_ino, manifest.st_mtime_ns, manifest.st_size)


def _settle(path: Path) -> None:
    """Wait until no files are on the way to their places; complete what a killed writer left."""
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
