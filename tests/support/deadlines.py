"""Time limits that end a hanging test; a slow test still passes."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE_S = 120


@contextmanager
def stopped_if_it_hangs(seconds: int = PATIENCE_S) -> Iterator[None]:
    """Raise TimeoutError in the block after this time; works only in the main thread.

    This is for work that would take hours if it went wrong.
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
    """Wait until `is_so()` is true; fail if `thread`, which should make it true, ends first."""
    with stopped_if_it_hangs():
        while not is_so():
            thread.join(0.005)
            assert thread.is_alive()
