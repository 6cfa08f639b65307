"""Contexts of a plan, and the kernels that TensorRT-RTX compiles on the device.

TensorRT-RTX compiles kernels during the first steps. They are stored in the user's cache directory
by plan and GPU, so that the next start does not wait again. The library itself rejects a file that
no longer fits.
"""

import os
from pathlib import Path
from typing import Any

from bita.errors import EngineError
from bita.files import write_whole


class KernelCache:
    """Creates contexts and keeps compiled kernels.

    sha256: hash of the plan.
    capability: compute capability of the GPU, such as "sm89".
    """

    def __init__(self, trt: Any, engine: Any, sha256: str, capability: str) -> None:
        self._trt = trt
        self._engine = engine
        self._config: Any = None
        self._cache: Any = None
        self._path = cache_directory() / f"{sha256[:32]}-{capability}.kernels"
        self._saved = 0
        if hasattr(engine, "create_runtime_config"):
            self._open()

    def new_context(self) -> Any:
        """Return a context without activation memory. Raises EngineError if there is none."""
        if self._config is None:
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self._engine.create_execution_context(strategy)
        else:
            context = self._engine.create_execution_context(self._config)
        if context is None:
            raise EngineError("the plan did not create a context; is the GPU's memory full?")
        return context

    def save(self) -> None:
        """Store the compiled kernels if there are new ones; failing to write is not an error."""
        if self._cache is None:
            return
        data = bytes(memoryview(self._cache.serialize()))
        if len(data) <= self._saved:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, data)
        except OSError:
            return
        self._saved = len(data)

    def _open(self) -> None:
        trt = self._trt
        self._config = self._engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if not hasattr(self._config, "create_runtime_cache"):
            return  # TensorRT also has configurations, but does not compile on the device
        kinds = trt.DynamicShapesKernelSpecializationStrategy
        self._config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
        self._config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # steps have their own
        self._cache = self._config.create_runtime_cache()
        if self._path.is_file() and self._cache.deserialize(self._path.read_bytes()):
            self._saved = self._path.stat().st_size
        self._config.set_runtime_cache(self._cache)


def cache_directory() -> Path:
    """Return the directory for disposable caches.

    It is $XDG_CACHE_HOME/bita-edge, or ~/.cache/bita-edge.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bita-edge"
