"""Paths of libbita, the library for programs in C and C++ (docs/cpp.md).

    g++ program.cpp -I$(python -c 'import bita.native as n; print(n.include_dir())') \\
        -L$(python -c 'import bita.native as n; print(n.library_dir())') -l:libbita.so.0
    cmake -Dbita_DIR=$(python -c 'import bita.native as n; print(n.cmake_dir())') ...

Wheels built by `make wheels` contain it. In a checkout, `make cpp` installs it.
"""

import ctypes
import os
from pathlib import Path

from bita.errors import BitaError

LIBRARY = "libbita.so.0"
PACKAGE = Path(__file__).resolve().parent  # in a strict editable install, that of the sources


class LibbitaMissingError(BitaError):
    """This installation lacks libbita or its headers."""


def include_dir() -> Path:
    """Return the folder of `bita/bita.h` and `bita/bita.hpp`. Raises LibbitaMissingError."""
    folder = (PACKAGE / "runtime" / "native" / "include").resolve()
    if not (folder / "bita" / "bita.h").is_file():
        raise _missing(f"no file {folder / 'bita' / 'bita.h'}")
    return folder


def library_dir() -> Path:
    """Return the folder of `libbita.so.0`. Raises LibbitaMissingError if it is missing."""
    return _library().parent


def cmake_dir() -> Path:
    """Return the folder of `bitaConfig.cmake`, for `bita_DIR`. Raises LibbitaMissingError."""
    folder = _library().parent
    for place in (folder / "cmake", folder / "cmake" / "bita"):  # in a wheel; after `make cpp`
        if (place / "bitaConfig.cmake").is_file():
            return place
    raise _missing(f"no bitaConfig.cmake for {folder / LIBRARY}")


def text_fault(engine: Path, library: Path | None = None) -> str:
    """Return why libbita does not support the tokenizer of an engine; "" if it does.

    Args:
        engine: The engine directory.
        library: File of another libbita. None uses that of this installation.

    Raises:
        LibbitaMissingError: if the library is missing, or too old to answer.
    """
    path = library or _library()
    try:
        loaded = ctypes.CDLL(str(path))
        check = loaded.bita_check_text
    except (OSError, AttributeError) as error:
        raise LibbitaMissingError(
            f"{path} is not the libbita of this bita-edge ({error}); run `make cpp` again"
        ) from error
    check.argtypes, check.restype = [ctypes.c_char_p], ctypes.c_int32
    loaded.bita_error.restype = ctypes.c_char_p
    if check(os.fsencode(engine)) == 0:
        return ""
    message: bytes = loaded.bita_error()
    return message.decode(errors="replace")


def _library() -> Path:
    """Return the library in the package, or the one that `make cpp` installed in a checkout."""
    in_package = (PACKAGE / "runtime" / "native").resolve() / LIBRARY
    if in_package.is_file():
        return in_package
    if _is_checkout():
        for path in sorted(_installed().glob(f"lib*/{LIBRARY}")):
            return path
    raise _missing(f"no file {in_package}")


def _installed() -> Path:
    """Return the installation prefix of `make cpp`."""
    return PACKAGE.parent / "build" / "prefix"


def _is_checkout() -> bool:
    return (PACKAGE.parent / "runtime" / "native" / "CMakeLists.txt").is_file()


def _missing(fault: str) -> LibbitaMissingError:
    """Return the error for `fault`, with the fix for this kind of installation."""
    if _is_checkout():
        where = f" nor in {_installed()}"
        fix = f"Run `make cpp` in {PACKAGE.parent}"
    else:
        where = ""
        fix = "Run `make cpp` in a checkout of bita-edge"
    return LibbitaMissingError(
        f"libbita is not in this installation: {fault}{where}. {fix}, or install a wheel of "
        "`make wheels`, which has it"
    )
