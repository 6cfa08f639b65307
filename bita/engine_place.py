"""Where an engine is written: its directory without links, and the hidden names of its writers.

Hidden names lie beside the engine and begin with a dot and its name, so that a rename puts a
finished directory in its place. Beside a mount point lies another file system; there they lie in
the engine.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from bita.errors import EngineError

INCOMING = ".engine.incoming"  # in an engine: files that are about to take their places
WITHIN = ".engine"  # hidden names in a mount point begin with it
OWN = re.compile(r"\.\d+-[0-9a-f]{8}\.partial")  # after the prefix: of one process
MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Place:
    """The place of one engine, the same for every path that leads to it."""

    target: Path  # absolute, no part of it a link; may be missing
    is_mount: bool
    prefix: Path  # of hidden names, which continue with a dot

    @classmethod
    def of(cls, path: str | Path) -> "Place":
        """Raises EngineError for a link that leads nowhere."""
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
                f"{path} is a link to {target}, and {target.parent} is not there; mount it, or "
                "remove the link"
            )
        is_mount = _is_mount_point(target)
        within = target / WITHIN
        return cls(target, is_mount, within if is_mount else target.parent / f".{target.name}")

    def hidden(self, suffix: str) -> Path:
        """A hidden name that all writers of this engine share."""
        return self.prefix.with_name(f"{self.prefix.name}.{suffix}")

    @property
    def lock(self) -> Path:
        return self.hidden("lock")

    def own(self) -> Path:
        """A new hidden name that belongs to this process."""
        return self.hidden(f"{os.getpid()}-{os.urandom(4).hex()}.partial")

    def leftovers(self) -> list[Path]:
        """What `own` named and is still there: of killed writers, if no other is at work."""
        start = self.prefix.name
        beside = [
            path
            for path in self.prefix.parent.iterdir()
            if path.name.startswith(start) and OWN.fullmatch(path.name, len(start))
        ]
        return [*beside, *self.target.glob(f"{INCOMING}.*")]

    @property
    def keeps_directory(self) -> bool:
        """Whether the directory has to stay the same one: it is mounted, or we are in it."""
        try:
            return self.is_mount or Path.cwd().is_relative_to(self.target)
        except FileNotFoundError:  # the current directory was removed
            return False


def _is_mount_point(path: Path) -> bool:
    """Bind mounts of one file system too, which os.path.ismount does not see."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return os.path.ismount(path)
    return str(path) in {_unescaped(line.split(" ")[4]) for line in lines}


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
