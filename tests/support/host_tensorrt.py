"""A stand-in for `tensorrt` on the host, whose "plans" name a graph that ONNX Runtime runs.

Contexts read and write at the given addresses when the stream of `host_cuda.c` reaches them, so
that the backend's use of addresses, profiles, streams and graphs is tested for real.
"""

import ctypes
import json
from collections.abc import Sequence
from mmap import mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from host_cuda import host_cuda_library

__version__ = "10.3.0"
TYPES = {
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}
ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class ILogger:
    ERROR, INTERNAL_ERROR, WARNING = "error", "internal error", "warning"

    def log(self, severity: str, message: str) -> None: ...


def nptype(dtype: Any) -> Any:
    return dtype


def write_plan(path: Path, graph: Path, profiles: Sequence[Any]) -> None:
    """Write a plan; `profiles` map free dimensions to (min, usual, max), as in PlanOptions."""
    path.write_text(json.dumps({"graph": str(graph), "profiles": list(profiles)}))


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self.engine_host_code_allowed = True  # the backend must turn this off

    def deserialize_cuda_engine(self, serialized: mmap) -> "HostEngine | None":
        assert not self.engine_host_code_allowed
        plan = bytes(memoryview(serialized))
        if not plan.startswith(b"{"):
            self._logger.log(ILogger.WARNING, "this is not an error")
            self._logger.log(ILogger.ERROR, "magic tag does not match")
            return None
        return HostEngine(self._logger, **json.loads(plan))


class HostEngine:
    device_memory_size_v2 = 4096

    def __init__(self, logger: ILogger, graph: str, profiles: list[dict[str, list[int]]]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.logger = logger
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.profiles = profiles
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.values = {**self.inputs, **{v.name: v for v in self.session.get_outputs()}}
        self.contexts: list[HostContext] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self.values)

    def get_tensor_name(self, index: int) -> str:
        return list(self.values)[index]

    def get_tensor_shape(self, name: str) -> list[int]:
        return [size if isinstance(size, int) else -1 for size in self.values[name].shape]

    def get_tensor_dtype(self, name: str) -> Any:
        return TYPES[self.values[name].type]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        sizes, shape = self.profiles[profile], self.values[name].shape
        return [
            [size if isinstance(size, int) else sizes[size][kind] for size in shape]
            for kind in range(3)
        ]

    def create_execution_context(self, strategy: str) -> "HostContext":
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        self.contexts.append(HostContext(self))
        return self.contexts[-1]


class HostContext:
    def __init__(self, engine: HostEngine) -> None:
        self._engine = engine
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = 0
        self._kept: list[Any] = []

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self._engine.device_memory_size_v2
        self._memory = memory

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._profile = profile
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        assert self._profile is not None
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        bounds = zip(least, shape, most, strict=True)
        if not all(low <= size <= high for low, size, high in bounds):
            self._engine.logger.log(ILogger.ERROR, f"{list(shape)} is outside of {least}..{most}")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        missing = {*self._engine.values} - {*self._addresses}
        if missing or not self._memory:
            self._engine.logger.log(ILogger.ERROR, f"no address of {sorted(missing)}")
            return False
        binding = self._bind()
        call = CALLBACK(lambda _: self._engine.session.run_with_iobinding(binding))
        self._kept.append((binding, call))  # graphs replay it
        library = ctypes.CDLL(host_cuda_library())
        library.host_cuda_enqueue.argtypes = [ctypes.c_void_p, CALLBACK, ctypes.c_void_p]
        library.host_cuda_enqueue(stream, call, None)
        return True

    def _bind(self) -> Any:
        binding = self._engine.session.io_binding()
        values = self._engine.values
        free: dict[int | str, int] = {}
        for name, value in self._engine.inputs.items():
            free |= dict(zip(value.shape, self._shapes.get(name, value.shape), strict=True))
        for name, value in values.items():
            shape = tuple(size if isinstance(size, int) else free[size] for size in value.shape)
            array = array_at(self._addresses[name], shape, TYPES[value.type])
            wrapped = ort.OrtValue.ortvalue_from_numpy(array)
            self._kept.append(wrapped)
            if name in self._engine.inputs:
                binding.bind_ortvalue_input(name, wrapped)
            else:
                binding.bind_ortvalue_output(name, wrapped)
        return binding


def array_at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return a view of host memory."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = (ctypes.c_char * max(count, 1)).from_address(address)
    return np.frombuffer(buffer, np.uint8)[:count].view(dtype).reshape(shape)
