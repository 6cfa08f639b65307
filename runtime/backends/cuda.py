"""The calls of the CUDA runtime that decoding needs, by ctypes on libcudart of CUDA 12 or newer.

Memory and graphs are freed when nothing refers to them anymore.
"""

import ctypes
import glob
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.errors import EngineError

OLDEST = 12  # CUDA version; cudaGraphInstantiateWithFlags, onnxruntime and TensorRT need it
MAJOR, MINOR = 75, 76  # cudaDeviceAttr of the compute capability
ANY_DIRECTION = 4  # cudaMemcpyDefault
NON_BLOCKING, THREAD_LOCAL = 1, 1
OUT_OF_MEMORY = 2
DEFAULT_STREAM = None
NAMES = ("libcudart.so.13", "libcudart.so.12")  # found by the loader
SYSTEM_PLACES = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/*/lib")
ANY_VERSION = "libcudart.so"  # link that development packages install
FIX = (
    "pip install nvidia-cuda-runtime, or apt install cuda-cudart on a Jetson; or run the engine on "
    "the CPU: --backend ort-cpu"
)
_P, _Z = c_void_p, c_size_t
# Argument types of each function; all return a status.
CALLS: dict[str, list[Any]] = {
    "cudaGetDeviceCount": [_P],
    "cudaSetDevice": [c_int],
    "cudaDeviceGetAttribute": [_P, c_int, c_int],
    "cudaRuntimeGetVersion": [_P],
    "cudaDriverGetVersion": [_P],
    "cudaMemGetInfo": [_P, _P],
    "cudaMalloc": [_P, _Z],
    "cudaFree": [_P],
    "cudaMallocHost": [_P, _Z],
    "cudaFreeHost": [_P],
    "cudaMemset": [_P, c_int, _Z],
    "cudaMemsetAsync": [_P, c_int, _Z, _P],
    "cudaMemcpyAsync": [_P, _P, _Z, c_int, _P],
    "cudaMemcpy2DAsync": [_P, _Z, _P, _Z, _Z, _Z, c_int, _P],
    "cudaStreamCreateWithFlags": [_P, c_uint],
    "cudaStreamDestroy": [_P],
    "cudaStreamSynchronize": [_P],
    "cudaStreamBeginCapture": [_P, c_int],
    "cudaStreamEndCapture": [_P, _P],
    "cudaGraphInstantiateWithFlags": [_P, _P, c_ulonglong],
    "cudaGraphLaunch": [_P, _P],
    "cudaGraphDestroy": [_P],
    "cudaGraphExecDestroy": [_P],
}


class Cuda:
    """A GPU, with the memory that was allocated through this object. Open it with `Cuda.load`.

    device: number of the GPU.
    capability: compute capability, such as "sm89".
    allocated_bytes, peak_bytes: current and peak device memory.
    """

    def __init__(self, library: ctypes.CDLL, device: int) -> None:
        self._library = library
        self.device = device
        self.allocated_bytes = self.peak_bytes = 0
        for name, types in CALLS.items():
            function = getattr(library, name, None)
            if function is not None:
                function.argtypes, function.restype = types, c_int
        for name in ("cudaGetErrorName", "cudaGetErrorString"):
            getattr(library, name).argtypes = [c_int]
            getattr(library, name).restype = c_char_p
        self._check_version()
        self._check_devices()
        self.call("cudaSetDevice", device)
        self.capability = f"sm{self._attribute(MAJOR)}{self._attribute(MINOR)}"

    @classmethod
    def load(cls, device: int = 0, library: str | None = None) -> "Cuda":
        """Load the runtime library and select a device.

        library: path of the library. None: search for it.

        Raises EngineError, with the fix, if the library, the driver or the device is missing.
        """
        candidates = [library] if library else library_candidates()
        for candidate in candidates:
            try:
                return cls(ctypes.CDLL(candidate), device)
            except OSError:
                continue
        raise EngineError(
            f"no CUDA runtime library was found (searched {', '.join(candidates)}); {FIX}"
        )

    @property
    def runtime_version(self) -> str:
        return self._version("cudaRuntimeGetVersion")

    @property
    def driver_version(self) -> str:
        """The newest CUDA version that the driver supports; "0.0" without a driver."""
        return self._version("cudaDriverGetVersion")

    def memory(self) -> tuple[int, int]:
        """Return the free and the total device memory in bytes."""
        free, total = c_size_t(), c_size_t()
        self.call("cudaMemGetInfo", byref(free), byref(total))
        return free.value, total.value

    def allocate(self, num_bytes: int) -> "DeviceMemory":
        """Allocate zeroed device memory. Raises EngineError if there is not enough."""
        return DeviceMemory(self, num_bytes)

    def allocate_host(self, num_bytes: int) -> "PinnedMemory":
        """Allocate pinned host memory, which the GPU copies directly."""
        return PinnedMemory(self, num_bytes)

    def stream(self) -> "Stream":
        return Stream(self)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a CUDA function. Raises EngineError with its name and CUDA's reason."""
        status = self.status(name, *arguments)
        if status:
            raise EngineError(f"{name} failed: {self.reason(status)}")

    def status(self, name: str, *arguments: Any) -> int:
        status: int = getattr(self._library, name)(*arguments)
        if status:
            # reset the error, or another library in the process would take it for its own
            self._library.cudaGetLastError()
        return status

    def reason(self, status: int) -> str:
        name = self._library.cudaGetErrorName(status).decode()
        return f"{name} ({status}), {self._library.cudaGetErrorString(status).decode()}"

    def count(self, num_bytes: int) -> None:
        """Add to the allocated memory; a negative number is a release."""
        self.allocated_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)

    def _attribute(self, number: int) -> int:
        value = c_int()
        self.call("cudaDeviceGetAttribute", byref(value), number, self.device)
        return value.value

    def _version(self, name: str) -> str:
        value = c_int()
        self.call(name, byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"

    def _check_version(self) -> None:
        version = self.runtime_version
        if int(version.split(".")[0]) < OLDEST:
            raise EngineError(
                f"the CUDA runtime is {version}, but {OLDEST} or later is needed; {FIX}"
            )

    def _check_devices(self) -> None:
        count = c_int()
        status = self.status("cudaGetDeviceCount", byref(count))
        if status:
            raise EngineError(
                f"no CUDA device: {self.reason(status)}; driver for CUDA {self.driver_version}, "
                f"runtime {self.runtime_version}: install or update the driver, or run the engine "
                "on the CPU: --backend ort-cpu"
            )
        if not 0 <= self.device < count.value:
            raise EngineError(f"there is no CUDA device {self.device}; there are {count.value}")


class DeviceMemory:
    """`num_bytes` bytes of GPU memory at `address`, zeroed when allocated."""

    def __init__(self, cuda: Cuda, num_bytes: int) -> None:
        pointer = c_void_p()
        status = cuda.status("cudaMalloc", byref(pointer), num_bytes)
        if status == OUT_OF_MEMORY:
            free, total = cuda.memory()
            raise EngineError(
                f"the GPU has no {num_bytes / 1e6:.0f} MB free: {free / 1e6:.0f} of "
                f"{total / 1e6:.0f} MB are; end other programs there, or build with a smaller "
                "CAPACITY or PRECISION"
            )
        if status:
            raise EngineError(f"cudaMalloc failed: {cuda.reason(status)}")
        self.address, self.num_bytes = int(pointer.value or 0), num_bytes
        self._finalizer = weakref.finalize(self, _free, cuda, self.address, num_bytes)
        cuda.count(num_bytes)
        cuda.call("cudaMemset", self.address, 0, num_bytes)
        # cudaMemset is asynchronous, and our streams do not wait for the default stream
        cuda.call("cudaStreamSynchronize", DEFAULT_STREAM)

    def free(self) -> None:
        """Free the memory; this happens automatically when nothing refers to it."""
        self._finalizer()


class PinnedMemory:
    """Pinned host memory at `address`, zeroed when allocated.

    array: uint8 [num_bytes]; the array and its views keep the memory alive.
    """

    def __init__(self, cuda: Cuda, num_bytes: int) -> None:
        pointer = c_void_p()
        cuda.call("cudaMallocHost", byref(pointer), num_bytes)
        self.address, self.num_bytes = int(pointer.value or 0), num_bytes
        buffer = (ctypes.c_uint8 * num_bytes).from_address(self.address)
        weakref.finalize(buffer, cuda.status, "cudaFreeHost", self.address)
        self.array: npt.NDArray[np.uint8] = np.ctypeslib.as_array(buffer)
        self.array[:] = 0

    def free(self) -> None:
        """Make `array` empty; the memory is freed with the last view of it."""
        self.array = np.empty(0, np.uint8)


class Stream:
    """A CUDA stream: work that the GPU does in order, asynchronously to the host."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        pointer = c_void_p()
        cuda.call("cudaStreamCreateWithFlags", byref(pointer), NON_BLOCKING)
        self.handle = int(pointer.value or 0)
        weakref.finalize(self, cuda.status, "cudaStreamDestroy", self.handle)

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        """Copy between host and GPU addresses, in any direction."""
        self._cuda.call("cudaMemcpyAsync", target, source, num_bytes, ANY_DIRECTION, self.handle)

    def copy_rows(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
    ) -> None:
        """Copy `height` rows of `width` bytes; a pitch is the distance between rows in bytes."""
        self._cuda.call(
            "cudaMemcpy2DAsync",
            *(target, target_pitch, source, source_pitch, width, height),
            *(ANY_DIRECTION, self.handle),
        )

    def fill(self, target: int, value: int, num_bytes: int) -> None:
        self._cuda.call("cudaMemsetAsync", target, value, num_bytes, self.handle)

    def synchronize(self) -> None:
        """Wait for all work in the stream."""
        self._cuda.call("cudaStreamSynchronize", self.handle)

    @contextmanager
    def capture(self) -> Iterator["Graph"]:
        """Capture the block's work into a graph instead of running it.

        The graph can be launched after the block. Raises EngineError if the work cannot be
        captured.
        """
        graph = Graph(self._cuda)
        self._cuda.call("cudaStreamBeginCapture", self.handle, THREAD_LOCAL)
        try:
            yield graph
        except BaseException:
            self._end_capture()
            raise
        graph.instantiate(self._end_capture(must_work=True))

    def _end_capture(self, must_work: bool = False) -> int:
        pointer = c_void_p()
        status = self._cuda.status("cudaStreamEndCapture", self.handle, byref(pointer))
        if status and must_work:
            reason = self._cuda.reason(status)
            raise EngineError(f"a step cannot be captured: cudaStreamEndCapture failed: {reason}")
        if pointer.value and not must_work:
            self._cuda.status("cudaGraphDestroy", pointer.value)
        return int(pointer.value or 0)


class Graph:
    """Captured work that is launched with one call."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._executable = 0

    def instantiate(self, graph: int) -> None:
        pointer = c_void_p()
        try:
            self._cuda.call("cudaGraphInstantiateWithFlags", byref(pointer), graph, 0)
        finally:
            self._cuda.status("cudaGraphDestroy", graph)
        self._executable = int(pointer.value or 0)
        weakref.finalize(self, self._cuda.status, "cudaGraphExecDestroy", self._executable)

    def launch(self, stream: Stream) -> None:
        self._cuda.call("cudaGraphLaunch", self._executable, stream.handle)


def library_candidates() -> Sequence[str]:
    """Return possible names and paths of the runtime library, in order of preference.

    pip's packages come first, then the loader's paths, then a toolkit; in each, newest first.
    """
    packaged: list[str] = []
    for part in ("cu13/lib", "cuda_runtime/lib"):  # CUDA 13's wheels, CUDA 12's wheels
        for base in sys.path:
            packaged += _libraries(Path(base) / "nvidia" / part)
    system = [path for place in SYSTEM_PLACES for path in _libraries(Path(place))]
    return [*packaged, *NAMES, *system, ANY_VERSION]


def _libraries(folder: Path) -> list[str]:
    """Return the versioned libraries of a folder, which may be a pattern.

    Runtime images do not have the unversioned libcudart.so.
    """
    return sorted(glob.glob(str(folder / "libcudart.so.*")), reverse=True)


def _free(cuda: Cuda, address: int, num_bytes: int) -> None:
    cuda.status("cudaFree", address)
    cuda.count(-num_bytes)
