"""The CUDA runtime by ctypes, on a stand-in that does on the host what the library does."""

import gc

import numpy as np
import pytest
from host_cuda import host_cuda, host_cuda_library, load_host_cuda

from bita.errors import EngineError
from bita.runtime import cuda as module
from bita.runtime.cuda import Cuda, PinnedMemory, Stream


@pytest.fixture
def cuda() -> Cuda:
    return load_host_cuda()


def test_what_the_device_is(cuda: Cuda) -> None:
    assert (cuda.capability, cuda.runtime_version, cuda.driver_version) == ("sm89", "13.0", "13.0")
    assert (cuda.num_multiprocessors, cuda.is_integrated) == (4, False)
    host_cuda().host_cuda_set_capability(12, 0)
    assert Cuda.load(library=host_cuda_library()).capability == "sm120"


def test_copies_go_there_and_back(cuda: Cuda) -> None:
    stream = cuda.stream()
    memory, sent, received = cuda.allocate(64), cuda.allocate_host(64), cuda.allocate_host(64)
    stream.copy(received.address, memory.address, 64)
    assert not received.array.any(), "device memory is zeroed"
    sent.array[:] = np.arange(64)
    stream.copy(memory.address + 16, sent.address, 48)
    stream.copy(received.address, memory.address, 64)
    stream.synchronize()
    assert received.array.tolist() == [0] * 16 + [*range(48)]
    stream.fill(memory.address, 255, 4)
    stream.copy(received.address, memory.address, 8)
    assert received.array[:8].tolist() == [255] * 4 + [0] * 4


def test_rows_are_copied_between_pitches(cuda: Cuda) -> None:
    """Slots [2, 5) of 4 heads of 10 slots of 3 bytes, out of rows that lie together."""
    stream, slab, rows = cuda.stream(), cuda.allocate_host(120), cuda.allocate_host(36)
    rows.array[:] = np.arange(36) + 1
    stream.copy_rows(slab.address + 6, 30, rows.address, 9, 9, 4)
    expected = np.zeros((4, 10, 3), np.uint8)
    expected[:, 2:5] = (np.arange(36) + 1).reshape(4, 3, 3)
    np.testing.assert_array_equal(slab.array.reshape(4, 10, 3), expected)


def test_a_graph_replays_with_what_is_there_then(cuda: Cuda) -> None:
    stream = cuda.stream()
    source, between, target = (cuda.allocate_host(4) for _ in range(3))
    with stream.capture() as graph:
        stream.copy(between.address, source.address, 4)
        stream.copy(target.address, between.address, 4)
        stream.fill(between.address, 9, 4)
    assert not between.array.any(), "capturing runs nothing"
    for value in (3, 5):
        source.array[:] = value
        graph.launch(stream)
        stream.synchronize()
        assert (target.array[0], between.array[0]) == (value, 9)


def test_a_block_that_raises_is_not_captured(cuda: Cuda) -> None:
    stream, memory = cuda.stream(), cuda.allocate_host(4)
    before = host_cuda().host_cuda_num_live()
    with pytest.raises(KeyError), stream.capture():
        put_and_fail(stream, memory)
    assert host_cuda().host_cuda_num_live() == before
    stream.fill(memory.address, 2, 4)
    assert memory.array.tolist() == [2] * 4


def put_and_fail(stream: Stream, memory: PinnedMemory) -> None:
    stream.fill(memory.address, 1, 4)
    raise KeyError


def test_what_cannot_be_captured_is_told(cuda: Cuda) -> None:
    stream = cuda.stream()
    with (
        pytest.raises(EngineError, match="cudaErrorStreamCaptureInvalidated"),
        stream.capture(),
    ):
        stream.synchronize()
    stream.synchronize()


def test_all_is_given_back(cuda: Cuda) -> None:
    gc.collect()
    before = host_cuda().host_cuda_num_live()
    stream, memory = cuda.stream(), cuda.allocate(1000)
    view = cuda.allocate_host(16).array.view(np.int64)
    view[:] = 7
    with stream.capture() as graph:
        stream.fill(memory.address, 0, 10)
    graph.launch(stream)
    stream.record()
    assert (cuda.allocated_bytes, cuda.peak_bytes) == (1000, 1000)
    assert view.tolist() == [7, 7], "a view keeps its memory"
    memory.free()
    memory.free()
    assert (cuda.allocated_bytes, cuda.peak_bytes) == (0, 1000)
    del stream, memory, view, graph
    assert host_cuda().host_cuda_num_live() == before


def test_time_between_events(cuda: Cuda) -> None:
    stream = cuda.stream()
    start = stream.record()
    assert stream.record().milliseconds_since(start) == 0.5


def test_too_little_memory(cuda: Cuda) -> None:
    host_cuda().host_cuda_set_limit(0)
    with pytest.raises(EngineError, match=r"no 5 MB free: 0 of 0 MB are; .* smaller CAPACITY"):
        cuda.allocate(5_000_000)
    assert cuda.allocated_bytes == 0


def test_an_error_names_the_call(cuda: Cuda) -> None:
    memory = cuda.allocate(16)
    with pytest.raises(EngineError, match=r"cudaMemcpyAsync failed: cudaErrorInvalidValue \(1\)"):
        cuda.stream().copy(memory.address, memory.address, 17)


def test_what_is_missing_is_named_with_the_fix() -> None:
    load_host_cuda()
    library = host_cuda_library()
    with pytest.raises(EngineError, match=r"looked for /no/such.so; pip install nvidia-cuda"):
        Cuda.load(library="/no/such.so")
    with pytest.raises(EngineError, match="no CUDA device 1; there are 1"):
        Cuda.load(1, library)
    host_cuda().host_cuda_set_devices(0)
    with pytest.raises(EngineError, match=r"no CUDA device: cudaErrorNoDevice \(100\).*ort-cpu"):
        Cuda.load(library=library)
    host_cuda().host_cuda_set_version(11080)
    with pytest.raises(EngineError, match=r"CUDA runtime is 11\.8, needed is 12"):
        Cuda.load(library=library)


def test_every_call_is_declared() -> None:
    """A pointer without a type would be cut to 32 bits."""
    library = load_host_cuda()._library
    for name, types in module.CALLS.items():
        assert getattr(library, name).argtypes == types
