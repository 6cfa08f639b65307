"""Find and load the library of native operators.

ONNX Runtime loads the same file by its path (`register_custom_ops_library`), so an instruction set
(ISA) selected here applies to its operators.
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

VERSION = 5  # of the library's C functions and operators
NAMES = {"win32": "bita_operators.dll", "darwin": "libbita_operators.dylib"}


@dataclass(frozen=True)
class Operators:
    """The loaded library."""

    path: Path
    version: int
    isa: str  # the instruction set in use, such as "avx512-vnni", or "plain" for portable C++
    isas: tuple[str, ...]  # every one that this processor supports, the fastest first


@dataclass
class WeightsPlace:
    """The place of a session's weights."""

    in_memory: bool = False  # whether they are in huge pages rather than mapped


def operators_library() -> Path:
    """Return the library's file.

    Raises:
        LibraryMissingError: if there is none.
    """
    # An editable install may link each file; the library is next to the sources.
    folder = Path(__file__).resolve().parent
    path = folder / NAMES.get(sys.platform, "libbita_operators.so")
    if not path.is_file():
        raise LibraryMissingError(f"The library of native operators is missing: no file {path}")
    return path


def loaded_operators() -> Operators:
    """Return the operators of this process.

    Raises:
        LibraryMissingError: if they cannot be loaded.
    """
    path = operators_library()
    library = _load(path)
    isas = library.bita_operators_isas().decode().split()
    isa = library.bita_operators_isa().decode()
    return Operators(path, VERSION, isa, tuple(isas))


def use_isa(name: str) -> None:
    """Use this instruction set in all sessions of the process, for tests and reports.

    Args:
        name: One of `Operators.isas`.

    Raises:
        ValueError: if this processor does not support it.
    """
    if _load(operators_library()).bita_operators_use_isa(name.encode()) != 0:
        known = ", ".join(loaded_operators().isas)
        raise ValueError(f"ISA {name!r} is not supported here; use one of {known}")


@contextmanager
def weights_in_memory(path: Path) -> Iterator[WeightsPlace]:
    """Put the weights of the session that is created in this context into huge pages.

    Steps are faster because they need no lookups of small pages. If the system has no huge pages,
    or less free memory than twice the file, the weights stay mapped. Contexts for one file may be
    nested: reading begins with the outer one.

    Args:
        path: File of the weights.

    Yields:
        The place of the weights, which is set when the context ends.

    Raises:
        LibraryMissingError: if the operators cannot be loaded.
    """
    library = _load(operators_library())
    library.bita_operators_read_weights(os.fsencode(path))
    place = WeightsPlace()
    try:
        yield place
    finally:
        place.in_memory = library.bita_operators_take_weights() == 0


def decoding_library() -> ctypes.CDLL:
    """Return the library for guesses and draws in `runtime/decoding/`.

    Raises:
        LibraryMissingError: if the operators cannot be loaded.
    """
    return _load(operators_library())


@cache
def _load(path: Path) -> ctypes.CDLL:
    """Load the library and declare its functions, once for each process."""
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
    """Declare the types of the library's functions. Raises AttributeError if one is missing."""
    library.bita_operators_isa.restype = ctypes.c_char_p
    library.bita_operators_isas.restype = ctypes.c_char_p
    library.bita_operators_use_isa.argtypes = [ctypes.c_char_p]
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
