"""Memory that a process holds and nobody uses."""

import ctypes
from functools import cache
from typing import Any


def give_back() -> None:
    """Return what the C library keeps of freed memory to the system; glibc alone has much.

    A tokenizer of 49,000 tokens leaves 14 MB when it is read, ONNX Runtime 10 MB when it loads
    a model. Takes about 3 ms.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    """glibc's `malloc_trim`; None elsewhere."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return None
