"""Steps executed by ONNX Runtime on the CPU, with every buffer allocated and bound in advance.

Graphs of all dialects run here, including those that are compiled for GPUs elsewhere. Graphs of
native operators have paged caches and find a row's text by its pages; their other inputs are the
same.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from bita.adapter import Adapter
from bita.dialect_spec import DIALECTS, NATIVE
from bita.engine import NEW_ROWS, SLOTS, WEIGHTS_FILE, Engine
from bita.errors import EngineError
from bita.runtime.backends.buckets import Buckets
from bita.runtime.backends.cache import HostCache
from bita.runtime.backends.held_file import HeldFile
from bita.runtime.backends.joint_step import OrtJointStep
from bita.runtime.backends.layout import CPU_PREFILL_ROWS, PREFILL_ROWS, Layout, tree_layout
from bita.runtime.backends.ort_session import (
    cache_type,
    check_session,
    load_session,
    min_slots,
    ort_values,
    session_options,
    step_error,
)
from bita.runtime.backends.paged_cache import PagedCache
from bita.runtime.backends.pair_scores import EnginePairs
from bita.runtime.backends.parts import JointStep
from bita.runtime.backends.step_values import (
    Arrays,
    IdCheck,
    fill_masks,
    lora_values,
    packed_lora_values,
    step_values,
)
from bita.runtime.native.library import weights_in_memory
from bita.tree import Tree


class OrtBackend:
    """An engine loaded into ONNX Runtime, and its cache.

    Args:
        engine: Checked engine.
        num_threads: Threads. 0: one per physical core.
        graph: Serialized variant of the engine's graph, to run instead of it.
        operators_to: Prefix of the name of a file for operator times. None: do not measure them.
        kept_bytes: Memory for texts that have left a paged cache.
        map_weights: Whether to map the weights of native operators instead of reading them.

    Raises:
        EngineError: if the graph cannot be loaded.
    """

    def __init__(
        self,
        engine: Engine,
        num_threads: int = 0,
        graph: bytes | None = None,
        operators_to: Path | None = None,
        kept_bytes: int = 0,
        map_weights: bool = False,
    ) -> None:
        manifest = engine.manifest
        self._engine = engine
        self.vocab_size = manifest.vocab_size
        self.num_ranks = manifest.num_ranks
        options = session_options(engine, num_threads)
        if operators_to is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(operators_to)
        self._weights = HeldFile(engine.file(WEIGHTS_FILE), engine.files[WEIGHTS_FILE]["sha256"])
        self.has_weights_in_memory = False
        self._is_native = manifest.dialect == NATIVE.name
        if self._is_native and not map_weights:
            with weights_in_memory(engine.file(WEIGHTS_FILE)) as place:
                self._session = load_session(engine, options, graph)
            self.has_weights_in_memory = place.in_memory
        else:
            self._session = load_session(engine, options, graph)
        self._weights.check_loaded()
        check_session(engine, self._session)
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        self._lora: WeakKeyDictionary[Adapter, Mapping[str, ort.OrtValue]] = WeakKeyDictionary()
        self.cache = _allocate(engine, cache_type(self._session), kept_bytes)
        self.pairs = EnginePairs(engine)
        self.min_slots = min_slots(engine, self._session)
        self.buckets = Buckets.of(manifest.capacity) if SLOTS in self._inputs else None
        self.exact_trees = DIALECTS[manifest.dialect].exact_trees
        self._min_exact_rows = 1 if self.exact_trees else None
        # native operators compute only what rows attend to
        self.prefill_rows = PREFILL_ROWS if self.exact_trees else CPU_PREFILL_ROWS
        self.gives_rows = NEW_ROWS in {value.name for value in self._session.get_outputs()}
        self._caches = ort_values(self.cache.views())
        self._placement = ort_values(self.cache.placement)

    def bind(
        self,
        layout: Layout,
        adapter: Adapter,
        with_logits: bool = False,
        probes: Sequence[str] = (),
    ) -> "BoundStep":
        """Return a step of this layout with this adapter; inputs and outputs are bound once.

        with_logits: add the logits of the output rows, 4 * R * V bytes a step.
        probes: additional outputs of the graph, allocated in each step.
        """
        return BoundStep(self, layout, adapter, with_logits, probes)

    def joint_step(self, adapter: Adapter) -> JointStep | None:
        """Return a runner for steps of several texts; None without native operators."""
        if not isinstance(self.cache, PagedCache):
            return None
        return OrtJointStep(self, self.cache, adapter)

    def min_exact_rows(self, adapter: Adapter, sizes: Sequence[int] = ()) -> int:
        """Return 1 if a step of one row is bit-identical to larger ones on this machine, else 2.

        The first call clears the cached text. `sizes` are not used: all steps of at least two rows
        are bit-identical. Some graphs always compute attention with two rows; whether the products
        of their linear layers depend on the number of rows is specific to the processor, so it is
        tried.
        """
        if self._min_exact_rows is None:
            self._min_exact_rows = self._try_one_row(adapter) if self.min_slots > 1 else 2
        return self._min_exact_rows

    def _try_one_row(self, adapter: Adapter) -> int:
        self.cache.start(adapter)
        logits = []
        for rows in (1, 2):
            step = self.bind(tree_layout(Tree.root_only(), rows), adapter)
            step.token_ids[0, 0] = 1
            step.run()
            logits.append(step.top_logits[0])
        return 1 if np.array_equal(*logits) else 2

    def new_binding(self) -> ort.IOBinding:
        """Return a binding to the cache's slab and to the placement of its text."""
        binding = self._session.io_binding()
        for name, value in self._placement.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._caches.items():
            binding.bind_ortvalue_input(f"past.{name}", value)
            if not self.gives_rows:
                binding.bind_ortvalue_output(f"present.{name}", value)
        return binding

    def adapter_inputs(self, adapter: Adapter) -> Mapping[str, ort.OrtValue]:
        """Return the adapter's LoRA by the names of the graph's inputs, shared by all steps.

        For an adapter without LoRA the values add nothing. They override layout values of the same
        name.
        """
        if adapter not in self._lora:
            shapes = {name: v.shape for name, v in self._inputs.items() if name.startswith("lora.")}
            make = packed_lora_values if self._is_native else lora_values
            self._lora[adapter] = ort_values(make(shapes, adapter))
        return self._lora[adapter]

    def end_operators(self) -> Path:
        """Complete the file of operator times and return its path."""
        return Path(self._session.end_profiling())

    @property
    def device_bytes(self) -> int:
        """GPU memory: none."""
        return 0

    def known_inputs(self, arrays: Arrays) -> Arrays:
        """Return those arrays that are inputs of the graph."""
        return {name: array for name, array in arrays.items() if name in self._inputs}

    def run(self, binding: ort.IOBinding) -> None:
        """Execute a step.

        Raises EngineError if an operator of the graph fails, or if the weights file, which ONNX
        Runtime has mapped, has been changed.
        """
        self._weights.check()
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # the binding raises many kinds
            raise step_error(self._engine, error) from error
        if not self.has_weights_in_memory:  # otherwise the next step's check is soon enough
            self._weights.check()


class BoundStep:
    """A step with fixed buffers: fill `token_ids`, then call `run`.

    token_ids, positions: int64 [1, Q] input buffers; mask rows are already filled.
    num_slots: cache slots that it writes after the text.
    row_slots: [Q], the slot of each row, counted from the text's first.
    top_ids [R, k], top_logits [R, k], logits [R, V] or None: output buffers, overwritten by `run`.
    """

    def __init__(
        self,
        backend: OrtBackend,
        layout: Layout,
        adapter: Adapter,
        with_logits: bool,
        probes: Sequence[str] = (),
    ) -> None:
        self._backend = backend
        self._probes = probes
        self._cache = backend.cache
        self._layout = layout
        num_rows, num_outputs = layout.num_rows, len(layout.output_rows)
        self.num_rows = num_rows
        self.num_slots = max(num_rows, backend.min_slots)
        self.token_ids = np.zeros((1, num_rows), np.int64)
        fill_masks(self.token_ids, layout, backend.vocab_size)
        self.positions = np.zeros((1, num_rows), np.int64)
        self.row_slots = np.zeros(num_rows, np.int64)
        self._row_index = np.arange(num_rows)
        self._cache_length = np.zeros(1, np.int64)
        self.top_ids = np.zeros((num_outputs, backend.num_ranks), np.int64)
        self._id_check = IdCheck(self.top_ids, backend.vocab_size)
        self.top_logits = np.zeros((num_outputs, backend.num_ranks), np.float32)
        self.logits = (
            np.zeros((num_outputs, backend.vocab_size), np.float32) if with_logits else None
        )
        inputs: Arrays = {
            "token_ids": self.token_ids,
            "positions": self.positions,
            "row_slots": self.row_slots,
            "cache_length": self._cache_length,
            "wants_logits": np.array([with_logits]),
            **step_values(layout, adapter),
        }
        outputs: Arrays = {"top_ids": self.top_ids, "top_logits": self.top_logits}
        if self.logits is not None:
            outputs["logits"] = self.logits
        self._new_rows = None
        if backend.gives_rows:
            layers, heads, _, width = self._cache.shape
            self._new_rows = np.zeros((layers, heads, num_rows, width), self._cache.dtype)
            outputs[NEW_ROWS] = self._new_rows
        # The binding does not keep the arrays alive; these OrtValues do.
        self._inputs = {
            **ort_values(backend.known_inputs(inputs)),
            **backend.adapter_inputs(adapter),
        }
        self._outputs = ort_values(outputs)
        self._bindings: dict[int | None, ort.IOBinding] = {}
        self._slots: list[ort.OrtValue] = []
        self._binding = self._binding_for(self._bucket())

    def run(self) -> None:
        """Execute the step after the cached text. Raises EngineError if the cache lacks room."""
        self._cache.reserve(self.num_rows, self.num_slots)
        np.add(self._layout.offsets, self._cache.length, out=self.positions[0])
        np.add(self._row_index, self._cache.length, out=self.row_slots)
        self._cache_length[0] = self._cache.num_slots_used
        self._binding = self._binding_for(self._bucket())
        self._backend.run(self._binding)
        self._id_check.check()
        if self._new_rows is not None:
            self._cache.write(self._new_rows)

    def probed(self) -> Arrays:
        """Return the probes' values of the last step."""
        values = self._binding.get_outputs()[-len(self._probes) :] if self._probes else []
        return {name: value.numpy() for name, value in zip(self._probes, values, strict=True)}

    def _bucket(self) -> int | None:
        buckets = self._backend.buckets
        if buckets is None:
            return None
        return buckets.size(self._cache.num_slots_used, self._layout, self.num_slots)

    def _binding_for(self, bucket: int | None) -> ort.IOBinding:
        if bucket not in self._bindings:
            self._bindings[bucket] = self._bind(bucket)
        return self._bindings[bucket]

    def _bind(self, bucket: int | None) -> ort.IOBinding:
        binding = self._backend.new_binding()
        if bucket is not None:
            self._slots.append(ort.OrtValue.ortvalue_from_numpy(np.arange(bucket)))
            binding.bind_ortvalue_input(SLOTS, self._slots[-1])
        for name, value in self._inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            binding.bind_ortvalue_output(name, value)
        for name in self._probes:
            binding.bind_output(name)
        return binding


def _allocate(engine: Engine, dtype: npt.DTypeLike, kept_bytes: int = 0) -> HostCache | PagedCache:
    shape, is_native = engine.manifest.cache_shape, engine.manifest.dialect == NATIVE.name
    try:
        return PagedCache(shape, dtype, kept_bytes) if is_native else HostCache(shape, dtype)
    except (OSError, MemoryError, OverflowError, ValueError) as error:
        gigabytes = math.prod(shape) * np.dtype(dtype).itemsize / 1e9
        raise EngineError(
            f"a cache of {gigabytes:.0f} GB, for {shape[2]} slots, cannot be allocated; rebuild "
            f"engine {engine.path} with a smaller --capacity"
        ) from error
