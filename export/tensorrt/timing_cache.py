"""TensorRT's timings of kernels, kept between builds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bita.files import write_whole
from bita.plan import RTX
from bita.runtime.backends.kernel_cache import cache_directory


@contextmanager
def keep_timings(trt: Any, config: Any, library: str, targets: Sequence[str]) -> Iterator[None]:
    """Load the timings of earlier builds for a block, and save them when it ends.

    A damaged file, or a file of another library, is ignored. TensorRT-RTX times nothing during a
    build, and would need a GPU for a cache.
    """
    if library == RTX:
        yield
        return
    path = cache_directory() / f"tensorrt-{trt.__version__}-{'-'.join(targets)}.timing"
    kept = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(kept)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, memoryview(config.get_timing_cache().serialize()))
