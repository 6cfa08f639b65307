"""Replacement of an engine by a finished directory: atomically, or file by file.

Atomically, the kernel exchanges the names of the two directories, so that there is no moment
without an engine. Where that is not possible (a mount point, the current directory, a file system
without support), the new files are first collected in INCOMING inside the engine. From then on they
belong to the engine: renames move them into place, the manifest last. If the process is killed in
between, the next process that opens or writes the engine completes the replacement.
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
# Errors of kernels, sandboxes, file systems, container layers and mount points without support.
CANNOT = (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EXDEV, errno.EBUSY)


def put(finished: Path, place: Place) -> None:
    """Make the directory `finished` the engine at `place`, and remove the old one.

    All files are flushed to disk before the engine changes. Raises OSError.
    """
    _sync_all(finished)
    target = place.target
    if not target.exists():
        os.rename(finished, target)
    elif place.keeps_directory or not _exchange(finished, target):
        _put_within(finished, target)
    _sync(target.parent)
    shutil.rmtree(finished, ignore_errors=True)  # after an exchange, this is the old engine


def complete(target: Path) -> None:
    """Move the files of INCOMING into place, if that directory exists.

    Another process may do this at the same time. Raises OSError.
    """
    incoming = target / INCOMING
    manifest = incoming / MANIFEST_FILE
    with suppress(FileNotFoundError):
        names = _list_files(manifest)
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


def _list_files(manifest: Path) -> Collection[str]:
    """Return the file names in a manifest. Raises OSError if one leads out of the engine."""
    if manifest.parent.is_symlink():
        raise OSError(errno.EINVAL, "it is a symbolic link", str(manifest.parent))
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
    """Exchange the names of two directories; return False if that is not supported."""
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
    """Rename a file; the kernel ignores renames between links to one file, so remove the source."""
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
    """Flush a file, or the names in a directory, to disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # the file may still reach the disk
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # directories on some file systems
            raise
    finally:
        os.close(descriptor)
