"""Print a folder with ONNX Runtime's library under the name that programs load.

    LD_LIBRARY_PATH=$(python runtime_folder.py) program

The Python package names the library by its full version; this script links it by its soname, in the
cache ($XDG_CACHE_HOME/bita-edge, or ~/.cache/bita-edge).
"""

import importlib.util
import os
import re
import sys
from pathlib import Path

from headers import cached


def main() -> int:
    found = importlib.util.find_spec("onnxruntime")
    places = found.submodule_search_locations if found else None
    libraries = [*Path(places[0], "capi").glob("libonnxruntime.so.*")] if places else []
    if not libraries:
        print(
            "the package onnxruntime is missing or has no library: pip install onnxruntime",
            file=sys.stderr,
        )
        return 1
    version = re.sub(r"[^0-9a-zA-Z.]", "", libraries[0].name)
    folder = cached(f"onnxruntime-library-{version}")
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "libonnxruntime.so.1"
    if not link.is_symlink() or link.resolve() != libraries[0].resolve():
        partial = folder / f".{os.getpid()}"
        partial.unlink(missing_ok=True)
        partial.symlink_to(libraries[0])
        partial.replace(link)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
