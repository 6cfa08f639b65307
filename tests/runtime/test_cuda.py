"""The ctypes binding of the CUDA runtime, tested on a library that emulates it on the host."""

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from host_cuda import host_cuda, host_cuda_library, load_host_cuda

from bita.errors import EngineError
from bita.runtime.backends import cuda as module
from bita.runtime.backends.cuda import Cuda, Graph, PinnedMemory, Stream


@pytest.fixture
def cuda() -> Cuda:
    return load_host_cuda()


def test_the_device_is_described(cuda: Cuda) -> None:
    assert (cuda.capability, cuda.runtime_version, cuda.driver_version) == ("sm89", "13.0", "13.0")
    host_cuda().host_cuda_set_capability(12, 0)
    assert Cuda.load(library=host_cuda_library()).capability == "sm120"


def test_copies_work_in_both_directions(cuda: Cuda) -> None:
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


def test_memory_is_zeroed_before_a_stream_writes(cuda: Cuda) -> None:
    """Streams do not wait for memset."""
    stream, memory, received = cuda.stream(), cuda.allocate(4), cuda.allocate_host(4)
    stream.fill(memory.address, 7, 4)
    stream.synchronize()
    stream.copy(received.address, memory.address, 4)
    assert received.array.tolist() == [7] * 4


def test_rows_are_copied_between_different_pitches(cuda: Cuda) -> None:
    """Contiguous rows fill slots [2, 5) of 4 heads that have 10 slots of 3 bytes each."""
    stream, slab, rows = cuda.stream(), cuda.allocate_host(120), cuda.allocate_host(36)
    rows.array[:] = np.arange(36) + 1
    stream.copy_rows(slab.address + 6, 30, rows.address, 9, 9, 4)
    expected = np.zeros((4, 10, 3), np.uint8)
    expected[:, 2:5] = (np.arange(36) + 1).reshape(4, 3, 3)
    np.testing.assert_array_equal(slab.array.reshape(4, 10, 3), expected)


def test_rows_are_copied_from_wider_ones(cuda: Cuda) -> None:
    """A box of 5 rows of 3 bytes: both pitches, the width and the height differ."""
    stream, wide, narrow = cuda.stream(), cuda.allocate_host(77), cuda.allocate_host(28)
    wide.array[:] = np.arange(77)
    stream.copy_rows(narrow.address + 1, 4, wide.address + 11 + 6, 11, 3, 5)
    expected = np.zeros((7, 4), np.uint8)
    expected[:5, 1:] = np.arange(77).reshape(7, 11)[1:6, 6:9]
    np.testing.assert_array_equal(narrow.array.reshape(7, 4), expected)


def test_a_graph_replays_with_current_values(cuda: Cuda) -> None:
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


def test_a_graph_includes_calls_enqueued_by_a_library(cuda: Cuda) -> None:
    stream, memory = cuda.stream(), cuda.allocate_host(1)
    seen: list[int] = []
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: seen.append(int(memory.array[0])))
    before = host_cuda().host_cuda_num_launches()
    with stream.capture() as graph:
        stream.fill(memory.address, 1, 1)
        host_cuda().host_cuda_enqueue(ctypes.c_void_p(stream.handle), call, None)
        stream.fill(memory.address, 2, 1)
    assert seen == []
    graph.launch(stream)
    graph.launch(stream)
    assert (seen, memory.array[0]) == ([1, 1], 2)
    assert host_cuda().host_cuda_num_launches() == before + 2


def test_a_graph_without_a_capture_cannot_be_launched(cuda: Cuda) -> None:
    with pytest.raises(EngineError, match="cudaGraphLaunch failed: cudaErrorInvalidValue"):
        Graph(cuda).launch(cuda.stream())


def test_a_block_that_raises_is_not_captured(cuda: Cuda) -> None:
    stream, memory = cuda.stream(), cuda.allocate_host(4)
    before = host_cuda().host_cuda_num_live()
    with pytest.raises(KeyError), stream.capture():
        fill_and_fail(stream, memory)
    assert host_cuda().host_cuda_num_live() == before
    stream.fill(memory.address, 2, 4)
    assert memory.array.tolist() == [2] * 4


def fill_and_fail(stream: Stream, memory: PinnedMemory) -> None:
    stream.fill(memory.address, 1, 4)
    raise KeyError


def test_a_call_that_cannot_be_captured_is_reported(cuda: Cuda) -> None:
    """The call reports it; if a library hides that error, the end of the block reports it."""
    stream, memory = cuda.stream(), cuda.allocate_host(4)
    before = host_cuda().host_cuda_num_live()
    unsupported = r"cudaStreamSynchronize failed: cudaErrorStreamCaptureUnsupported \(900\)"
    with pytest.raises(EngineError, match=unsupported), stream.capture():
        stream.synchronize()
    invalidated = r"cudaStreamEndCapture failed: cudaErrorStreamCaptureInvalidated \(901\)"
    with pytest.raises(EngineError, match=invalidated), stream.capture(), suppress(EngineError):
        stream.synchronize()
    assert host_cuda().host_cuda_num_live() == before
    stream.fill(memory.address, 2, 4)
    stream.synchronize()
    assert memory.array.tolist() == [2] * 4


def test_all_memory_is_released(cuda: Cuda) -> None:
    gc.collect()
    before = host_cuda().host_cuda_num_live()
    stream, memory = cuda.stream(), cuda.allocate(1000)
    view = cuda.allocate_host(16).array.view(np.int64)
    assert host_cuda().host_cuda_num_live() == before + 3, "a view keeps its memory"
    view[:] = 7
    with stream.capture() as graph:
        stream.fill(memory.address, 0, 10)
    graph.launch(stream)
    assert (cuda.allocated_bytes, cuda.peak_bytes) == (1000, 1000)
    assert view.tolist() == [7, 7]
    memory.free()
    memory.free()
    assert (cuda.allocated_bytes, cuda.peak_bytes) == (0, 1000)
    del stream, memory, view, graph
    assert host_cuda().host_cuda_num_live() == before


def test_freed_host_memory_outlives_its_views(cuda: Cuda) -> None:
    before = host_cuda().host_cuda_num_live()
    memory = cuda.allocate_host(8)
    view = memory.array[2:4]
    view[:] = 5
    memory.free()
    memory.free()
    assert (view.tolist(), memory.array.size) == ([5, 5], 0)
    assert host_cuda().host_cuda_num_live() == before + 1
    del view
    assert host_cuda().host_cuda_num_live() == before


def test_an_allocation_that_is_too_large_is_refused(cuda: Cuda) -> None:
    held = cuda.allocate(1000)
    host_cuda().host_cuda_set_limit(0)
    with pytest.raises(EngineError, match=r"no 5 MB free: 0 of 0 MB are; .* smaller CAPACITY"):
        cuda.allocate(5_000_000)
    assert cuda.allocated_bytes == cuda.peak_bytes == held.num_bytes


def test_an_error_names_the_call(cuda: Cuda) -> None:
    memory = cuda.allocate(16)
    with pytest.raises(EngineError, match=r"cudaMemcpyAsync failed: cudaErrorInvalidValue \(1\)"):
        cuda.stream().copy(memory.address, memory.address, 17)


def test_a_missing_requirement_is_reported_with_the_fix() -> None:
    load_host_cuda()
    library = host_cuda_library()
    with pytest.raises(EngineError, match=r"searched /no/such.so\); pip install nvidia-cuda"):
        Cuda.load(library="/no/such.so")
    with pytest.raises(EngineError, match="no CUDA device 1; there are 1"):
        Cuda.load(1, library)
    host_cuda().host_cuda_set_devices(0)
    with pytest.raises(EngineError, match=r"no CUDA device: cudaErrorNoDevice \(100\).*ort-cpu"):
        Cuda.load(library=library)
    host_cuda().host_cuda_set_version(11080)
    with pytest.raises(EngineError, match=r"CUDA runtime is 11\.8, but 12 or later"):
        Cuda.load(library=library)


def test_packages_are_searched_before_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (tmp_path / name / "nvidia" for name in ("first", "second"))
    toolkit = tmp_path / "toolkit"
    libraries = [
        new / "cu13" / "lib" / "libcudart.so.13",
        old / "cuda_runtime" / "lib" / "libcudart.so.12",
        toolkit / "libcudart.so.12.6",
        toolkit / "libcudart.so.11.0",
    ]
    for library in libraries:
        library.parent.mkdir(parents=True, exist_ok=True)
        library.touch()
    monkeypatch.setattr(sys, "path", [str(old.parent), str(new.parent)])
    monkeypatch.setattr(module, "SYSTEM_PLACES", [str(tmp_path / "tool*")])
    in_wheels, in_toolkit = list(map(str, libraries[:2])), list(map(str, libraries[2:]))
    assert module.library_candidates() == [
        *in_wheels,
        *("libcudart.so.13", "libcudart.so.12"),
        *in_toolkit,
        "libcudart.so",
    ]


def test_every_call_has_declared_types() -> None:
    """A pointer without a type would be truncated to 32 bits."""
    library = load_host_cuda()._library
    for name, types in module.CALLS.items():
        assert getattr(library, name).argtypes == types
