"""Where the library of native operators lies, and what it says of itself.

ONNX Runtime loads the same file by its path (`register_custom_ops_library`), so a road chosen here
is the one that its operators take.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bita.errors import LibraryMissingError

VERSION = 5  # of its C functions and operators
NAMES = {"win32": "bita_operators.dll", "darwin": "libbita_operators.dylib"}


@dataclass(frozen=True)
class Operators:
    """What the library says of itself."""

    path: Path
    version: int
    road: str  # the code path in use: "avx512-vnni", "avx-vnni", "avx2" or "plain"
    roads: tuple[str, ...]  # those that this processor can run, the fastest first


@dataclass
class WeightsPlace:
    """Where the weights of a session are. in_memory: in huge pages; else they are mapped."""

    in_memory: bool = False


def operators_library() -> Path:
    """The library's file. LibraryMissingError if there is none."""
    # An editable install may link each file: the library lies with the sources.
    folder = Path(__file__).resolve().parent
    path = folder / NAMES.get(sys.platform, "libbita_operators.so")
    if not path.is_file():
        raise LibraryMissingError(f"The library of native operators is missing: no file {path}")
    return path


def loaded_operators() -> Operators:
    """The operators of this process. LibraryMissingError if they cannot be loaded."""
    path = operators_library()
    library = _load(path)
    roads = library.bita_operators_roads().decode().split()
    road = library.bita_operators_road().decode()
    return Operators(path, VERSION, road, tuple(roads))


def use_road(name: str) -> None:
    """Take this code path from now on, in all sessions of this process: for tests and reports.

    ValueError if it cannot run here.
    """
    if _load(operators_library()).bita_operators_use_road(name.encode()) != 0:
        raise ValueError(f"no road {name!r} here; there are {', '.join(loaded_operators().roads)}")


@contextmanager
def weights_in_memory(path: Path) -> Iterator[WeightsPlace]:
    """Let the session that is made within have its weights in huge pages, read from this file.

    Steps are faster by what looking up small pages takes. Where the system has no huge pages, or
    less memory than twice the file, the weights stay mapped. Blocks for one file may be nested:
    reading begins with the outer one. LibraryMissingError if the operators cannot be
    loaded.
    """
    library = _load(operators_library())
    library.bita_operators_read_weights(os.fsencode(path))
    place = WeightsPlace()
    try:
        yield place
    finally:
        place.in_memory = library.bita_operators_take_weights() == 0


def decoding_library() -> ctypes.CDLL:
    """The library, for guesses and draws in `runtime/decoding/`.

    LibraryMissingError if the operators cannot be loaded.
    """
    return _load(operators_library())


@cache
def _load(path: Path) -> ctypes.CDLL:
    """The library with its functions declared; once for a process."""
    try:
        library = ctypes.CDLL(str(path))
        version = library.bita_operators_version()
        if version != VERSION:
            raise LibraryMissingError(
                f"The library of native operators {path} has version {version}; this bita-edge "
                f"needs {VERSION}"
            )
        _declare(library)
    except (OSError, AttributeError) as error:
        raise LibraryMissingError(
            f"The library of native operators cannot be loaded: {error}"
        ) from error
    return library


def _declare(library: ctypes.CDLL) -> None:
    """Types of its functions. AttributeError if it lacks one."""
    library.bita_operators_road.restype = ctypes.c_char_p
    library.bita_operators_roads.restype = ctypes.c_char_p
    library.bita_operators_use_road.argtypes = [ctypes.c_char_p]
    library.bita_operators_read_weights.argtypes = [ctypes.c_char_p]
    library.bita_operators_take_weights.argtypes = []
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.bita_operators_make_guesses.argtypes = [pointer]
    library.bita_operators_make_guesses.restype = pointer
    library.bita_operators_drop_guesses.argtypes = [pointer]
    library.bita_operators_drop_guesses.restype = None
    library.bita_operators_extend_guesses.argtypes = [pointer, ctypes.c_int, pointer, number]
    library.bita_operators_look_guesses.argtypes = [pointer, number, number, pointer]
    library.bita_operators_draw.argtypes = [pointer]
    library.RegisterCustomOps  # noqa: B018
