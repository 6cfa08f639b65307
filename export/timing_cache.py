"""What TensorRT timed of kernels, kept between builds.

TensorRT-RTX times nothing when it builds, and would want a GPU for a cache.
"""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from bita.runtime.kernel_cache import cache_directory


class TimingCache:
    """For one build: read before, written behind.

    A damaged file, or one of another library, is passed over.
    """

    def __init__(self, trt: Any, config: Any, library: str, targets: Sequence[str]) -> None:
        self._config = config
        self._path = None
        if library == "tensorrt":
            name = f"tensorrt-{trt.__version__}-{'-'.join(targets)}.timing"
            self._path = cache_directory() / name

    def __enter__(self) -> None:
        if self._path is None:
            return
        kept = self._path.read_bytes() if self._path.is_file() else b""
        cache = self._config.create_timing_cache(kept)
        if cache is None or not self._config.set_timing_cache(cache, False):
            self._config.set_timing_cache(self._config.create_timing_cache(b""), False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._path is None or kind is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(memoryview(self._config.get_timing_cache().serialize()))
        os.replace(partial, self._path)
