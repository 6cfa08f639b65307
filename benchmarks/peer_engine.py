"""Interface of the engines of `peer_worker.py`."""

import os
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

Settings = Mapping[str, Any]


class PeerEngine:
    """An engine to compare."""

    packages: tuple[str, ...] = ()  # whose versions are reported
    precision = ""  # as shown in the table

    @property
    def pid(self) -> int:
        """Id of the process that computes."""
        return os.getpid()

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in self.packages}

    def close(self) -> None:
        """End the processes that it started."""

    def generate(
        self, token_ids: list[int], num_new_tokens: int, eos_ids: list[int]
    ) -> tuple[list[int], list[float]]:
        """Return new tokens, and the ms at which each was known; the last may be EOS."""
        raise NotImplementedError


def stopwatch() -> Callable[[], float]:
    start = time.perf_counter()
    return lambda: (time.perf_counter() - start) * 1000
