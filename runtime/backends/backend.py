"""The interface between decoding and the backend that executes its steps."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from shlex import quote
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bita.adapter import Adapter
from bita.dialect_spec import NATIVE, PLAN_DIALECTS
from bita.engine import WEIGHTS_FILE, Engine
from bita.errors import EngineError, LibraryMissingError
from bita.plan import BACKENDS, LIBRARIES
from bita.runtime.backends.cache import Cache
from bita.runtime.backends.layout import Layout
from bita.runtime.backends.pair_scores import EnginePairs
from bita.runtime.backends.parts import JointStep
from bita.runtime.native.library import weights_in_memory


class StepResults(Protocol):
    """A step's results for its output rows; the next step overwrites them.

    top_ids [R, k], top_logits [R, k], logits [R, V] or None.
    """

    top_ids: npt.NDArray[np.int64]
    top_logits: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32] | None


class Step(StepResults, Protocol):
    """A step with fixed buffers: fill `token_ids`, then call `run`."""

    num_rows: int  # Q
    num_slots: int  # cache slots that it writes after the text
    token_ids: npt.NDArray[np.int64]  # [1, Q]; mask rows are already filled

    def run(self) -> None:
        """Execute the step after the cached text. Raises EngineError if the cache lacks room."""


class Backend(Protocol):
    """A loaded engine and its cache."""

    vocab_size: int  # V
    num_ranks: int  # k
    min_slots: int  # minimum number of slots that a step writes
    prefill_rows: int  # maximum number of prompt tokens in a step
    exact_trees: bool  # accepted rows are bit-identical to plain decoding on branches too
    pairs: EnginePairs

    @property
    def cache(self) -> Cache: ...

    @property
    def device_bytes(self) -> int:
        """Peak GPU memory of the backend in bytes; 0 without a GPU."""

    def bind(self, layout: Layout, adapter: Adapter, with_logits: bool = False) -> Step:
        """Return a step of this layout with this adapter.

        It may have more rows than the layout, to which no row attends. `with_logits` adds the
        logits of the output rows, 4 * R * V bytes a step.
        """

    def joint_step(self, adapter: Adapter) -> JointStep | None:
        """Return a runner for steps of several texts, or None if the backend cannot do that.

        Each text is bit-identical to what it would be alone.
        """

    def min_exact_rows(self, adapter: Adapter, sizes: Sequence[int] = ()) -> int:
        """Return the smallest step size from which a row's result is bit-identical.

        That holds for all larger steps, up to the largest of `sizes`. Clears the cached text.
        """


def open_backend(
    engine: Engine,
    name: str | None = None,
    num_threads: int = 0,
    cuda_graph: bool = True,
    kept_text_bytes: int = 0,
    map_weights: bool = False,
) -> Backend:
    """Load an engine into a backend.

    Args:
        engine: Checked engine.
        name: Name of the backend. None: the one that the engine was built for. Every engine also
            runs on "ort-cpu".
        num_threads: CPU threads. 0: one per physical core.
        cuda_graph: Whether to launch decode steps as captured CUDA graphs.
        kept_text_bytes: Memory for texts that have left a paged cache.
        map_weights: Whether to map the weights of native operators, as in `Session.open`.

    Raises:
        EngineError: if the backend is unknown or cannot run the engine.
    """
    built_for = engine.manifest.backend
    name = name or built_for
    if name not in BACKENDS:
        raise EngineError(f"backend {name!r} is not one of {', '.join(BACKENDS)}")
    if name not in ("ort-cpu", built_for):
        raise EngineError(_other_backend(engine, name))
    if name == "ort-cuda":
        from bita.runtime.backends.ort_cuda_backend import OrtCudaBackend

        return OrtCudaBackend(engine, cuda_graph)
    if name in LIBRARIES:
        from bita.runtime.backends.tensorrt_backend import TensorRtBackend

        return TensorRtBackend(engine, cuda_graph)
    from bita.runtime.backends.ort_backend import OrtBackend

    return OrtBackend(engine, num_threads, kept_bytes=kept_text_bytes, map_weights=map_weights)


@contextmanager
def weights_read_ahead(engine: Engine, map_weights: bool = False) -> Iterator[None]:
    """Read the weights ahead on a thread, for an engine that is opened in the block."""
    with ExitStack() as stack:
        if engine.manifest.dialect == NATIVE.name and not map_weights:
            with suppress(LibraryMissingError):  # opening the engine reports it
                stack.enter_context(weights_in_memory(engine.file(WEIGHTS_FILE)))
        yield


def _other_backend(engine: Engine, name: str) -> str:
    manifest = engine.manifest
    fix = f"make engine MODEL={quote(manifest.model)} BACKEND={name}"
    if name in LIBRARIES and manifest.dialect in PLAN_DIALECTS:
        fix = f"bita compile {engine.path} --backend {name}"
    return f"engine {engine.path} was built for {manifest.backend}, not for {name}: {fix}"
