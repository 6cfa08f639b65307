"""How a finished directory takes the place of an engine: at once, or file by file.

At once: the two directories change names in one step of the kernel, and there is no moment without
an engine. Where that cannot be (a mount point, the current directory, file systems without it),
the new files are first gathered in INCOMING inside the engine. From then on they are the engine's:
they take their places by renames, the manifest last, and if the process is killed in between, the
next one that opens or writes the engine completes that.
"""

import errno
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from bita.engine_files import table_faults
from bita.engine_place import INCOMING, Place
from bita.json_values import parse_json, read_regular_file
from bita.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES

AT_FDCWD, RENAME_EXCHANGE = -100, 2
# Without it: kernels and sandboxes, file systems, layers of a container, mount points.
CANNOT = (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EXDEV, errno.EBUSY)


def put(finished: Path, place: Place) -> None:
    """Make the directory `finished` the engine of `place`; what was there is removed.

    All of it is on the disk before the engine changes. Raises OSError.
    """
    _sync_all(finished)
    target = place.target
    if not target.exists():
        os.rename(finished, target)
    elif place.keeps_directory or not _exchange(finished, target):
        _put_within(finished, target)
    _sync(target.parent)
    shutil.rmtree(finished, ignore_errors=True)  # by now what was there


def complete(target: Path) -> None:
    """Let the files of INCOMING take their places, if there is such a directory.

    Another process may do the same at the same time. Raises OSError.
    """
    incoming = target / INCOMING
    manifest = incoming / MANIFEST_FILE
    with suppress(FileNotFoundError):
        names = _listed(manifest)
        for name in names:
            _move(incoming / name, target / name)
        for path in target.iterdir():
            if path.name not in {*names, MANIFEST_FILE} and _is_plain(path):
                path.unlink(missing_ok=True)
        _sync(target)
        _move(manifest, target / MANIFEST_FILE)
    if incoming.exists():
        _sync(target)
        shutil.rmtree(incoming, ignore_errors=True)


def _listed(manifest: Path) -> Collection[str]:
    """The names of the files in a manifest; an OSError if one of them leads out of the engine."""
    if manifest.parent.is_symlink():
        raise OSError(errno.EINVAL, "it is a link", str(manifest.parent))
    try:
        data = parse_json(read_regular_file(manifest, MAX_MANIFEST_BYTES))
    except ValueError as error:
        raise OSError(errno.EINVAL, f"not a manifest: {error}", str(manifest)) from error
    files = data.get("files") if isinstance(data, dict) else None
    if faults := table_faults(files):
        raise OSError(errno.EINVAL, faults[0], str(manifest))
    return list(files or ())


def _put_within(finished: Path, target: Path) -> None:
    incoming = target / INCOMING
    try:
        os.rename(finished, incoming)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EBUSY):
            raise
        partial = target / f"{INCOMING}.{finished.name.strip('.')}"
        shutil.copytree(finished, partial)
        _sync_all(partial)
        os.rename(partial, incoming)
    _sync(target)
    complete(target)


def _exchange(one: Path, other: Path) -> bool:
    """Let two directories change names; False where that cannot be done."""
    import ctypes

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    if renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _move(source: Path, target: Path) -> None:
    """Two links to one file are not renamed by the kernel, so the source is removed after it."""
    with suppress(FileNotFoundError):
        os.replace(source, target)
        source.unlink(missing_ok=True)


def _is_plain(path: Path) -> bool:
    return not path.name.startswith(".") and (path.is_symlink() or path.is_file())


def _sync_all(directory: Path) -> None:
    for path in directory.iterdir():
        _sync(path)
    _sync(directory)


def _sync(path: Path) -> None:
    """Wait until a file, or the names of a directory, are on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # it may be written all the same
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of directories on some file systems
            raise
    finally:
        os.close(descriptor)
