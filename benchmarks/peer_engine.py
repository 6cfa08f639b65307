"""What an engine of `peer_worker.py` gives."""

import os
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

Settings = Mapping[str, Any]


class PeerEngine:
    """One engine. packages: those whose versions are reported. precision: as the table shows it."""

    packages: tuple[str, ...] = ()
    precision = ""

    @property
    def pid(self) -> int:
        """The process that computes."""
        return os.getpid()

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in self.packages}

    def close(self) -> None:
        """End what it started."""

    def generate(
        self, token_ids: list[int], num_new_tokens: int, eos_ids: list[int]
    ) -> tuple[list[int], list[float]]:
        """New tokens, and the time in ms at which each was known; EOS may be the last."""
        raise NotImplementedError


def stopwatch() -> Callable[[], float]:
    start = time.perf_counter()
    return lambda: (time.perf_counter() - start) * 1000
