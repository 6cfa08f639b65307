"""An engine's arrays and cache on a GPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt

from bita.adapter import Adapter
from bita.runtime.backends.cache import Cache, Shape
from bita.runtime.backends.cuda import Cuda, DeviceMemory, PinnedMemory, Stream
from bita.runtime.backends.step_values import Arrays
from bita.tensors import FloatArray

ALIGNMENT = 256  # bytes, required by TensorRT for inputs and outputs
ZEROED_SLOTS = 256  # slots zeroed at a time, which limits the host memory for zeros


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """An array in GPU memory."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype
    memory: DeviceMemory  # keeps the address valid

    def shaped(self, *shape: int) -> "DeviceArray":
        """Return the array's beginning as an array of another shape."""
        return replace(self, shape=shape)


def upload(cuda: Cuda, stream: Stream, arrays: Arrays) -> dict[str, DeviceArray]:
    """Copy host arrays to the GPU, into one allocation."""
    block = Block(cuda, {name: (array.shape, array.dtype) for name, array in arrays.items()})
    for name, array in arrays.items():
        block.host[name][...] = array
    block.upload(stream)
    stream.synchronize()
    return block.device


class Block:
    """Arrays that are contiguous on the host and on the GPU, so that one copy transfers them."""

    def __init__(
        self, cuda: Cuda, shapes: Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]
    ) -> None:
        offsets, size = {}, 0
        for name, (shape, dtype) in shapes.items():
            offsets[name] = size
            num_bytes = prod(shape) * np.dtype(dtype).itemsize
            size += -(-max(num_bytes, 1) // ALIGNMENT) * ALIGNMENT
        self._pinned: PinnedMemory = cuda.allocate_host(size)
        self._memory: DeviceMemory = cuda.allocate(size)
        self.host: Arrays = {}
        self.device: dict[str, DeviceArray] = {}
        for name, (shape, dtype) in shapes.items():
            start, kind = offsets[name], np.dtype(dtype)
            part = self._pinned.array[start : start + prod(shape) * kind.itemsize]
            self.host[name] = part.view(kind).reshape(shape)
            self.device[name] = DeviceArray(
                self._memory.address + start, tuple(shape), kind, self._memory
            )

    def upload(self, stream: Stream) -> None:
        """Copy all arrays to the GPU, asynchronously."""
        stream.copy(self._memory.address, self._pinned.address, self._memory.num_bytes)

    def download(self, stream: Stream) -> None:
        """Copy all arrays to the host, asynchronously."""
        stream.copy(self._pinned.address, self._memory.address, self._memory.num_bytes)


class DeviceCache(Cache):
    """A cache on the GPU. Its copies are queued in the stream, in order with the steps."""

    def __init__(self, shape: Shape, dtype: npt.DTypeLike, cuda: Cuda, stream: Stream) -> None:
        super().__init__(shape, dtype)
        self._stream = stream
        self._slot_bytes = shape[3] * self.dtype.itemsize
        self._pitch = self.capacity * self._slot_bytes  # distance between heads
        self._num_heads = shape[0] * shape[1]  # over keys and values of all layers
        self._memory = cuda.allocate(self._num_heads * self._pitch)

    def layer(self, index: int) -> tuple[DeviceArray, DeviceArray]:
        """Return the keys and values of one layer, [1, H, C, D] each."""
        shape = (1, *self.shape[1:])
        size = self.shape[1] * self._pitch
        keys, values = (
            DeviceArray(self._memory.address + part * size, shape, self.dtype, self._memory)
            for part in (2 * index, 2 * index + 1)
        )
        return keys, values

    def write(self, rows: DeviceArray) -> None:
        """Write the rows of a step, [2L, H, Q, D], to the slots after the text."""
        width = rows.shape[2] * self._slot_bytes
        target = self._memory.address + self.num_slots_used * self._slot_bytes
        self._stream.copy_rows(target, self._pitch, rows.address, width, width, self._num_heads)

    def read(self, start: int, stop: int) -> FloatArray:
        layers, heads, _, width = self.shape
        rows: FloatArray = np.empty((layers, heads, stop - start, width), self.dtype)
        num_bytes = (stop - start) * self._slot_bytes
        source = self._memory.address + (self.prefix_length + start) * self._slot_bytes
        self._stream.copy_rows(
            rows.ctypes.data, num_bytes, source, self._pitch, num_bytes, self._num_heads
        )
        self._stream.synchronize()
        return rows

    def _put(self, rows: FloatArray) -> None:
        self._write_slots(self.num_slots_used, np.ascontiguousarray(rows))

    def _write_prefix(self, adapter: Adapter) -> None:
        num_layers, heads, length, width = adapter.prefix_keys.shape
        values = adapter.bounded
        sides = np.stack([values["prefix_keys"], values["prefix_values"]], axis=1)
        prefix = sides.reshape(2 * num_layers, heads, length, width)
        self._write_slots(0, np.ascontiguousarray(prefix, self.dtype))

    def _zero(self, start: int, stop: int) -> None:
        num_layers, heads, _, width = self.shape
        for first in range(start, stop, ZEROED_SLOTS):
            size = min(ZEROED_SLOTS, stop - first)
            self._write_slots(first, np.zeros((num_layers, heads, size, width), self.dtype))

    def _write_slots(self, first: int, rows: FloatArray) -> None:
        """Copy rows [2L, H, n, D] from the host to the slots from `first` on."""
        width = rows.shape[2] * self._slot_bytes
        if width:
            target = self._memory.address + first * self._slot_bytes
            self._stream.copy_rows(
                target, self._pitch, rows.ctypes.data, width, width, self._num_heads
            )
            self._stream.synchronize()  # the caller may free `rows` afterwards

    def _move(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        for target, source in zip(targets, sources, strict=True):
            self._stream.copy_rows(
                self._memory.address + target * self._slot_bytes,
                self._pitch,
                self._memory.address + source * self._slot_bytes,
                self._pitch,
                self._slot_bytes,
                self._num_heads,
            )
