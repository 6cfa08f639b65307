"""The place where an engine is written: its resolved directory, and the hidden names of writers.

Hidden names are next to the engine and begin with a dot and its name, so that a rename can move a
finished directory into its place. The directory that holds a mount point is on another file
system; there the hidden names are inside the engine.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from bita.errors import EngineError

INCOMING = ".engine.incoming"  # inside an engine: files that are about to be moved into place
WITHIN = ".engine"  # prefix of hidden names inside a mount point
OWN = re.compile(r"\.\d+-[0-9a-f]{8}\.partial")  # follows the prefix in names of one process
MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Place:
    """The place of one engine, the same for every path that leads to it."""

    target: Path  # absolute and without links; may be missing
    is_mount: bool
    prefix: Path  # start of hidden names, which continue with a dot

    @classmethod
    def of(cls, path: str | Path) -> "Place":
        """Return the place that `path` leads to. Raises EngineError for a broken link."""
        try:
            target = Path(os.path.realpath(path))
        except FileNotFoundError as error:
            raise EngineError(
                f"{path}: the current directory was removed or replaced; change into it again"
            ) from error
        if target.is_symlink():
            raise EngineError(f"{path} is a link that leads back to itself; remove it")
        if os.path.islink(path) and not target.parent.is_dir():
            raise EngineError(
                f"{path} is a link to {target}, but {target.parent} does not exist; mount it, or "
                "remove the link"
            )
        is_mount = _is_mount_point(target)
        within = target / WITHIN
        return cls(target, is_mount, within if is_mount else target.parent / f".{target.name}")

    def hidden(self, suffix: str) -> Path:
        """Return a hidden name that all writers of this engine share."""
        return self.prefix.with_name(f"{self.prefix.name}.{suffix}")

    @property
    def lock(self) -> Path:
        return self.hidden("lock")

    def own(self) -> Path:
        """Return a new hidden name that belongs to this process."""
        return self.hidden(f"{os.getpid()}-{os.urandom(4).hex()}.partial")

    def leftovers(self) -> list[Path]:
        """Return existing paths named by `own`; without other writers, killed ones left them."""
        start = self.prefix.name
        partial = [
            path
            for path in self.prefix.parent.iterdir()
            if path.name.startswith(start) and OWN.fullmatch(path.name, len(start))
        ]
        return [*partial, *self.target.glob(f"{INCOMING}.*")]

    @property
    def keeps_directory(self) -> bool:
        """Whether the directory itself must stay: it is mounted, or the current directory."""
        try:
            return self.is_mount or Path.cwd().is_relative_to(self.target)
        except FileNotFoundError:  # the current directory was removed
            return False


def _is_mount_point(path: Path) -> bool:
    """Return whether a path is a mount point, including bind mounts that os.path.ismount misses."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return os.path.ismount(path)
    return str(path) in {_unescape(line.split(" ")[4]) for line in lines}


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
