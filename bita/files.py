"""Files that are replaced as a whole: a reader sees the old content or the new, never a part.

The new content goes to a hidden file in the same directory, whose name belongs to one process and
one thread, and is then renamed. An error leaves the old file as it was and nothing beside it; a
killed process may leave its hidden file.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, data: str | bytes | memoryview) -> None:
    """Replace the file at `path`, or create it; text is written as UTF-8.

    The directory has to exist. Raises OSError that names `path`.
    """
    with replace_file(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file there takes the place of `path` when the block ends.

    For libraries that write files themselves. Raises OSError that names `path`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.filename == str(partial) and error.filename2 is None:
            error.filename = str(path)  # the name that the caller knows
        raise
    finally:
        partial.unlink(missing_ok=True)
