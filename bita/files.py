"""Atomic replacement of files: a reader sees the old content or the new content, never a part.

The new content is written to a hidden file in the same directory, whose name is unique to the
process and thread, and is then renamed. After an error the old file is unchanged and the hidden
file is removed; a killed process may leave its hidden file.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, data: str | bytes | memoryview) -> None:
    """Replace the file at `path`, or create it; text is written as UTF-8.

    The directory must exist. Raises OSError with `path` as its file name.
    """
    with replace_file(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file written there replaces `path` when the block ends.

    This is for libraries that write files themselves. Raises OSError with `path` as its file name.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.filename == str(partial) and error.filename2 is None:
            error.filename = str(path)  # the caller does not know the hidden name
        raise
    finally:
        partial.unlink(missing_ok=True)
