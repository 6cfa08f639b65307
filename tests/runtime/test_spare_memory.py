"""Unused memory is returned to the system."""

import ctypes
import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from resource import getpagesize

import pytest

from bita.engine import TOKENIZER_FILE, Engine
from bita.runtime import spare_memory
from bita.runtime.session import Session
from bita.runtime.text import prompt_encoder

PIECE, COUNT = 2000, 20_000


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * getpagesize()


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries retain little memory"
)
def test_freed_memory_is_returned() -> None:
    """The C library by itself retains freed blocks below one that is still allocated."""
    library = ctypes.CDLL(None)
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    pieces = [library.malloc(PIECE) for _ in range(COUNT)]
    for piece in pieces:
        ctypes.memset(piece, 1, PIECE)
    for piece in pieces[:-1]:
        library.free(piece)
    held = resident_bytes()
    spare_memory.give_back()
    assert held - resident_bytes() > PIECE * COUNT / 2
    library.free(pieces[-1])


def test_a_c_library_without_malloc_trim_is_supported(
    monkeypatch: pytest.MonkeyPatch, tiny_engine: Path
) -> None:
    spare_memory._trim.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    spare_memory.give_back()
    monkeypatch.undo()
    assert Session.open(tiny_engine, num_threads=1).generate("Hello", 4).token_ids
    spare_memory._trim.cache_clear()


@pytest.mark.parametrize("is_large", [False, True])
def test_weights_are_read_after_a_large_tokenizer(
    is_large: bool, tiny_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory freed after reading the tokenizer has been returned by then."""
    waited: list[bool] = []

    def note(engine: Engine, map_weights: bool) -> AbstractContextManager[None]:
        waited.append(map_weights)
        return nullcontext()

    monkeypatch.setattr("bita.runtime.loaded_engine.weights_read_ahead", note)
    size = (tiny_engine / TOKENIZER_FILE).stat().st_size
    monkeypatch.setattr(prompt_encoder, "MAX_SMALL_BYTES", size - 1 if is_large else size)
    Session.open(tiny_engine, num_threads=1)
    assert waited == [is_large]
