"""Tests that run side by side share the cores: a session has one thread unless it asks for more.

ONNX Runtime's threads spin while they wait, so that two processes of two threads each take several
times as long on two cores as they need.
"""

from typing import Any

import onnxruntime as ort

_THREADS = ort.SessionOptions.intra_op_num_threads


class OneThread(ort.SessionOptions):
    """Session options in which 0 threads, one per core elsewhere, are one."""

    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 0

    @property
    def intra_op_num_threads(self) -> int:
        """Threads of a session."""
        return int(_THREADS.__get__(self))

    @intra_op_num_threads.setter
    def intra_op_num_threads(self, count: int) -> None:
        _THREADS.__set__(self, count or 1)


def use_one_thread() -> None:
    """Give one thread to each session that this process opens from now on."""
    module: Any = ort
    module.SessionOptions = OneThread
