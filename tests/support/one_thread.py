"""Give sessions one thread by default, because parallel test processes share the cores.

ONNX Runtime's threads spin while they wait, so two processes with two threads each run several
times slower than necessary on two cores.
"""

from typing import Any

import onnxruntime as ort

_THREADS = ort.SessionOptions.intra_op_num_threads


class OneThread(ort.SessionOptions):
    """Session options for which 0 threads mean one, not one per core."""

    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 0

    @property
    def intra_op_num_threads(self) -> int:
        """Number of threads of a session."""
        return int(_THREADS.__get__(self))

    @intra_op_num_threads.setter
    def intra_op_num_threads(self, count: int) -> None:
        _THREADS.__set__(self, count or 1)


def use_one_thread() -> None:
    """Give one thread to each session that this process opens after this call."""
    module: Any = ort
    module.SessionOptions = OneThread
