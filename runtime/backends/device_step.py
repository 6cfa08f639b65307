"""Steps on a GPU: one copy uploads the inputs, one copy downloads the results."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bita.adapter import Adapter
from bita.engine import NEW_ROWS, SLOTS, Manifest
from bita.runtime.backends.buckets import Buckets
from bita.runtime.backends.cuda import Cuda, Stream
from bita.runtime.backends.device_memory import Block, DeviceArray, DeviceCache, upload
from bita.runtime.backends.layout import Layout, tree_layout
from bita.runtime.backends.step_values import (
    IdCheck,
    adapter_values,
    fill_masks,
    layout_values,
    lora_values,
)
from bita.tree import Tree

DeviceArrays = dict[str, DeviceArray]
MAX_ADAPTERS = 2  # kept on the GPU: the engine's own, and one to compare with


class Launcher(Protocol):
    """Queues one step in the stream. It holds no reference to the step, which avoids a cycle."""

    def launch(self, step: "DeviceStep", bucket: int) -> None:
        """Queue the step, which reads `bucket` cache slots."""


class Device:
    """State that the steps of an engine share on a GPU.

    gives_rows: whether the graph returns its new rows, so that the runtime writes the cache.
    lora_shapes: shapes of the graph's LoRA inputs.
    """

    def __init__(
        self,
        cuda: Cuda,
        manifest: Manifest,
        cache_type: npt.DTypeLike,
        gives_rows: bool,
        lora_shapes: Mapping[str, Sequence[int | str]],
        stream: Stream | None = None,
    ) -> None:
        self.cuda = cuda
        self.stream = stream or cuda.stream()
        self.vocab_size, self.num_ranks = manifest.vocab_size, manifest.num_ranks
        self.cache = DeviceCache(manifest.cache_shape, cache_type, cuda, self.stream)
        self.buckets = Buckets.of(manifest.capacity)
        self.gives_rows = gives_rows
        self._lora_shapes = lora_shapes
        self._slots = upload(cuda, self.stream, {SLOTS: np.arange(manifest.capacity)})[SLOTS]
        self._adapters: dict[int, tuple[Adapter, DeviceArrays]] = {}

    def slots(self, bucket: int) -> DeviceArray:
        """Return the slot numbers 0, 1, ..., [bucket]."""
        return self._slots.shaped(bucket)

    def adapter_arrays(self, adapter: Adapter) -> DeviceArrays:
        """Return an adapter's mask embeddings, prefix length and LoRA."""
        if id(adapter) not in self._adapters:
            while len(self._adapters) >= MAX_ADAPTERS:
                self._adapters.pop(next(iter(self._adapters)))
            values = {**adapter_values(adapter), **lora_values(self._lora_shapes, adapter)}
            self._adapters[id(adapter)] = adapter, upload(self.cuda, self.stream, values)
        return self._adapters[id(adapter)][1]


class DeviceStep:
    """A step with fixed buffers; see `bita.runtime.backends.backend.Step` for its fields.

    logits_at: buffer for logits that the graph always writes, even if they are not requested.
    None: the graph does not need one.
    """

    def __init__(
        self,
        device: Device,
        layout: Layout,
        adapter: Adapter,
        with_logits: bool,
        launcher: Launcher,
        logits_at: DeviceArray | None = None,
    ) -> None:
        self._launcher = launcher
        self.num_rows = self.num_slots = layout.num_rows
        self._device = device
        self._layout = layout
        rows, outputs = layout.num_rows, len(layout.output_rows)
        self._block = Block(
            device.cuda,
            {
                "token_ids": ((1, rows), np.int64),
                "positions": ((1, rows), np.int64),
                "cache_length": ((1,), np.int64),
            },
        )
        shapes: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {
            "top_ids": ((outputs, device.num_ranks), np.int64),
            "top_logits": ((outputs, device.num_ranks), np.float32),
        }
        if with_logits:
            shapes["logits"] = (outputs, device.vocab_size), np.float32
        self._results = Block(device.cuda, shapes)
        self.token_ids = self._block.host["token_ids"]
        fill_masks(self.token_ids, layout, device.vocab_size)
        self.top_ids, self.top_logits = (self._results.host[name] for name in list(shapes)[:2])
        self._id_check = IdCheck(self.top_ids, device.vocab_size)
        self.logits = self._results.host.get("logits")
        self._static = upload(device.cuda, device.stream, layout_values(layout))
        self._adapter_arrays = device.adapter_arrays(adapter)
        self._unasked = {} if with_logits or logits_at is None else {"logits": logits_at}
        self._new_rows = self._allocate_rows() if device.gives_rows else None

    def run(self) -> None:
        """Execute the step after the cached text. Raises EngineError if the cache lacks room."""
        cache = self._device.cache
        cache.reserve(self.num_rows, self.num_slots)
        np.add(self._layout.offsets, cache.length, out=self._block.host["positions"][0])
        self._block.host["cache_length"][0] = cache.num_slots_used
        bucket = self._device.buckets.size(cache.num_slots_used, self._layout, self.num_slots)
        self._launcher.launch(self, bucket)
        if self._new_rows is not None:
            cache.write(self._new_rows)
        self._device.stream.synchronize()
        self._id_check.check()

    def upload(self) -> None:
        """Queue the copy of the inputs in the stream."""
        self._block.upload(self._device.stream)

    def download(self) -> None:
        """Queue the copy of the results in the stream."""
        self._results.download(self._device.stream)

    def inputs(self, bucket: int) -> DeviceArrays:
        """Return the inputs by their names in the graph."""
        return {
            **self._block.device,
            **self._static,
            **self._adapter_arrays,
            SLOTS: self._device.slots(bucket),
            **{f"past.{name}": array for name, array in self._caches()},
        }

    def outputs(self) -> DeviceArrays:
        """Return the outputs by their names in the graph."""
        results = {**self._results.device, **self._unasked}
        if self._new_rows is not None:
            return {**results, NEW_ROWS: self._new_rows}
        return {**results, **{f"present.{name}": array for name, array in self._caches()}}

    def _caches(self) -> list[tuple[str, DeviceArray]]:
        cache = self._device.cache
        return [
            (f"{index}.{side}", array)
            for index in range(cache.shape[0] // 2)
            for side, array in zip(("key", "value"), cache.layer(index), strict=True)
        ]

    def _allocate_rows(self) -> DeviceArray:
        layers, heads, _, width = self._device.cache.shape
        shape, dtype = (layers, heads, self.num_rows, width), self._device.cache.dtype
        memory = self._device.cuda.allocate(int(np.prod(shape)) * dtype.itemsize)
        return DeviceArray(memory.address, shape, dtype, memory)


def rows_with_equal_bits(
    bind: Callable[[Layout, Adapter], DeviceStep],
    cache: DeviceCache,
    adapter: Adapter,
    sizes: Sequence[int],
) -> int:
    """Return the smallest of the sizes from which a row's result is bit-identical in all larger.

    Libraries choose kernels by the number of rows, and kernels sum in different orders. Clears the
    cached text.
    """
    cache.start(adapter)
    expected = None
    smallest = max(sizes)
    for size in sorted(set(sizes), reverse=True):
        step = bind(tree_layout(Tree.root_only(), size), adapter)
        step.token_ids[0, 0] = 1
        step.run()
        expected = step.top_logits[0].copy() if expected is None else expected
        if not np.array_equal(step.top_logits[0], expected):
            break
        smallest = size
    return smallest
