"""What keeps a test from hanging; a test that is only slow passes."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE_S = 120


@contextmanager
def stopped_if_it_hangs(seconds: int = PATIENCE_S) -> Iterator[None]:
    """Raise TimeoutError in the block if it runs that long. For work that would take hours if it
    went wrong; in the main thread only.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def wait_until(is_so: Callable[[], bool], thread: threading.Thread) -> None:
    """Wait for something that another thread does; fails if the thread ends before."""
    with stopped_if_it_hangs():
        while not is_so():
            thread.join(0.005)
            assert thread.is_alive()
