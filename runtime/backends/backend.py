"""What the decode round asks of whatever executes the steps, and how one is opened."""

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
    """What a step gave for output rows: top_ids [R, k], top_logits [R, k], logits [R, V] or None;
    overwritten by the next step.
    """

    top_ids: npt.NDArray[np.int64]
    top_logits: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32] | None


class Step(StepResults, Protocol):
    """A step with fixed buffers: fill `token_ids` and run.

    num_rows: Q. num_slots: cache slots that it writes behind the text. token_ids: int64 [1, Q];
    mask rows are filled already.
    """

    num_rows: int
    num_slots: int
    token_ids: npt.NDArray[np.int64]

    def run(self) -> None:
        """Execute the step behind the cached text; raises EngineError if it has no room there."""


class Backend(Protocol):
    """One engine loaded, and its cache.

    vocab_size: V. num_ranks: k. min_slots: that any step writes. prefill_rows: prompt tokens of a
    step, at most. exact_trees: whether an accepted row has plain decoding's bits on a branch too,
    not on the spine alone.
    """

    vocab_size: int
    num_ranks: int
    min_slots: int
    prefill_rows: int
    exact_trees: bool
    pairs: EnginePairs

    @property
    def cache(self) -> Cache: ...

    @property
    def device_bytes(self) -> int:
        """The most GPU memory that it has held, in bytes; 0 without a GPU."""

    def bind(self, layout: Layout, adapter: Adapter, with_logits: bool = False) -> Step:
        """A step of this layout, or of one with rows behind it that nothing sees, with this
        adapter. with_logits: also give the logits of the output rows, 4 * R * V bytes a step.
        """

    def joint_step(self, adapter: Adapter) -> JointStep | None:
        """What runs several texts in one step with this adapter, each with the bits that it has
        alone; None where that is not possible.
        """

    def min_exact_rows(self, adapter: Adapter, sizes: Sequence[int] = ()) -> int:
        """Rows from which on steps give a row the same bits, up to the largest of `sizes`; ends the
        text.
        """


def open_backend(
    engine: Engine,
    name: str | None = None,
    num_threads: int = 0,
    cuda_graph: bool = True,
    kept_text_bytes: int = 0,
    map_weights: bool = False,
) -> Backend:
    """Load an engine; name: of the backend, None for the one it was built for.

    Every engine runs on "ort-cpu" too. num_threads: of a CPU, 0 for one per physical core.
    cuda_graph: launch decode steps as captured graphs. kept_text_bytes: of a cache in pages, for
    texts that have left it. map_weights: of native operators, as for `Session.open`. Raises
    EngineError.
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
    """Begin at once, on a thread, to read the weights that opening the engine within will need."""
    with ExitStack() as stack:
        if engine.manifest.dialect == NATIVE.name and not map_weights:
            with suppress(LibraryMissingError):  # opening the engine says so
                stack.enter_context(weights_in_memory(engine.file(WEIGHTS_FILE)))
        yield


def _other_backend(engine: Engine, name: str) -> str:
    manifest = engine.manifest
    fix = f"make engine MODEL={quote(manifest.model)} BACKEND={name}"
    if name in LIBRARIES and manifest.dialect in PLAN_DIALECTS:
        fix = f"bita compile {engine.path} --backend {name}"
    return f"engine {engine.path} was built for {manifest.backend}, not for {name}: {fix}"
