"""One writer at a time: a lock file that is released with its process and names its holder.

The kernel holds the lock (`flock`), so it is released however the process ends; the file's text
informs those who wait. A writer removes its file when it is done. A process that waited for a
removed file holds a meaningless lock, so it checks whether the name still refers to its file, and
opens the name again if not.
"""

import errno
import fcntl
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("bita.engine")
MAX_TEXT = 400  # characters of a lock file that are read
MAX_COMMAND = 200
# Errors of `flock` on file systems without locks, such as some network file systems.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EIO, errno.EBADF)


@dataclass(frozen=True)
class _Held:
    thread: int
    descriptor: int
    excludes: bool  # False if the file system has no locks


_held: dict[Path, _Held] = {}  # by lock file


@contextmanager
def sole_writer(path: Path, subject: str) -> Iterator[bool]:
    """Hold the lock file `path` while the block runs; log once if another holder is waited for.

    Yields whether this block is the only one at work. That is False if the thread holds the lock
    already, which it may take again, and on a file system without locks, which is logged. `subject`
    names what is written in messages. Raises OSError if the file cannot be created.
    """
    if _is_ours(path):
        yield False
        return
    _held[path] = held = _acquire(path, subject)
    try:
        yield held.excludes
    finally:
        _release(path)


def try_sole_writer(path: Path) -> bool:
    """Take the lock if it is free; call `release` afterwards. Raises OSError like `sole_writer`."""
    descriptor = _open(path)
    try:
        free = _lock(descriptor, fcntl.LOCK_NB) is not None and _leads_to(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    if free:
        _held[path] = _Held(threading.get_ident(), descriptor, True)
    else:
        os.close(descriptor)
    return free


def release(path: Path) -> None:
    """Release a lock that `try_sole_writer` took."""
    _release(path)


def _is_ours(path: Path) -> bool:
    held = _held.get(path)
    return held is not None and held.thread == threading.get_ident()


def _acquire(path: Path, subject: str) -> _Held:
    is_reported = False
    while True:
        descriptor = _open(path)
        try:
            excludes = _lock(descriptor, fcntl.LOCK_NB)
            if excludes is None:
                if not is_reported:
                    log.warning("waiting for %s: it is being written by %s", subject, _text(path))
                    is_reported = True
                excludes = _lock(descriptor)
            if _leads_to(path, descriptor):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    if not excludes:
        log.warning(
            "%s is on a file system without locks: do not let another process write to it now",
            subject,
        )
    _sign(descriptor)
    return _Held(threading.get_ident(), descriptor, bool(excludes))


def _release(path: Path) -> None:
    """Remove the name before releasing the lock: later openers must create a new file."""
    held = _held.pop(path)
    with suppress(OSError):
        if _leads_to(path, held.descriptor):
            path.unlink()
    os.close(held.descriptor)


def _open(path: Path) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError as error:
        try:
            return os.open(path, flags | os.O_RDONLY)  # another user's file; enough for locking
        except FileNotFoundError:
            raise error from None


def _lock(descriptor: int, flags: int = 0) -> bool | None:
    """Lock a file: True if that succeeded, False if the file system has no locks.

    With LOCK_NB the result is None if another process holds the lock.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _leads_to(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Write who holds the lock into the file; ignore a full disk, or a file of another user."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    if len(command) > MAX_COMMAND:
        command = command[: MAX_COMMAND - 3] + "..."
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    text = f"`{command}` (process {os.getpid()} on {os.uname().nodename}, since {since})"
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(errors="replace"), 0)


def _text(path: Path) -> str:
    """Return who holds the lock, as far as it is known."""
    try:
        text = path.read_bytes()[:MAX_TEXT].decode(errors="replace")
    except OSError:
        text = ""
    return "".join(c if c.isprintable() else " " for c in text).strip() or "another process"


def _forget() -> None:
    """Close the parent's locks in a forked child, so that they do not outlive the parent."""
    for held in _held.values():
        os.close(held.descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
