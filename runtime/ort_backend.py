"""Steps executed by ONNX Runtime on the CPU, with every buffer allocated and bound beforehand."""

import os
import re
from collections.abc import Sequence
from typing import Any

# The official wheels report usage unless this is set before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from bita.adapter import Adapter
from bita.engine import GRAPH_FILE, LEAST_SLOTS, Engine
from bita.errors import EngineError
from bita.runtime.cache import Cache
from bita.runtime.layout import Layout, tree_layout
from bita.runtime.pair_scores import EnginePairs
from bita.runtime.processor import EXACT_INT8, PROCESSOR, multiplies_int8_exactly
from bita.tree import Tree

Arrays = dict[str, npt.NDArray[Any]]
ERRORS_ONLY = 3
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"  # of a graph in memory


class OrtBackend:
    """One engine loaded into ONNX Runtime, and its cache.

    num_threads: 0 for one per physical core. graph: a serialized variant of the engine's graph to
    run in its place. Raises EngineError if the graph cannot be loaded.
    """

    def __init__(self, engine: Engine, num_threads: int = 0, graph: bytes | None = None) -> None:
        manifest = engine.manifest
        self.vocab_size = manifest.vocab_size
        self.num_ranks = manifest.num_ranks
        self._session = _load(engine, num_threads, graph)
        self.cache = Cache(
            manifest.num_layers,
            manifest.num_kv_heads,
            manifest.capacity,
            manifest.head_dim,
            _cache_type(self._session),
        )
        self.has_lora = manifest.lora_rank > 0
        self.pairs = EnginePairs(engine)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.least_slots = int(metadata.get(LEAST_SLOTS, "1"))  # that a step writes
        self._caches = {
            f"{index}.{side}": ort.OrtValue.ortvalue_from_numpy(view)
            for index in range(manifest.num_layers)
            for side, view in zip(("key", "value"), self.cache.layer(index), strict=True)
        }

    def bind(
        self,
        layout: Layout,
        adapter: Adapter,
        with_logits: bool = False,
        probes: Sequence[str] = (),
    ) -> "BoundStep":
        """A step of this layout with this adapter, its inputs and outputs bound once.

        with_logits: also give the logits of the output rows, 4 * R * V bytes a step. probes: more
        outputs of the graph, allocated anew in each step.
        """
        return BoundStep(self, layout, adapter, with_logits, probes)

    def least_rows(self, adapter: Adapter) -> int:
        """1 where a step of one row gives the bits of larger ones here, else 2; ends the text.

        Some graphs attend with two rows in any case. Whether the products of their linear layers
        depend on the number of rows is up to the processor, so it is tried.
        """
        if self.least_slots < 2:
            return 2
        self.cache.start(adapter)
        logits = []
        for rows in (1, 2):
            step = self.bind(tree_layout(Tree.root_only(), rows), adapter)
            step.token_ids[0, 0] = 1
            step.run()
            logits.append(step.top_logits[0])
        return 1 if np.array_equal(*logits) else 2

    def new_binding(self) -> ort.IOBinding:
        """A binding in which past and present caches are the slab."""
        binding = self._session.io_binding()
        for name, value in self._caches.items():
            binding.bind_ortvalue_input(f"past.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)
        return binding

    def lora_inputs(self, adapter: Adapter) -> Arrays:
        """The adapter's LoRA by the names of the graph's inputs; zeros if it has none."""
        arrays = {}
        for value in self._session.get_inputs():
            if value.name.startswith("lora."):
                _, index, site, side = value.name.split(".")
                zeros = [size if isinstance(size, int) else 1 for size in value.shape]
                stacked = adapter.lora.get(f"lora_{site}_{side}")
                arrays[value.name] = (
                    np.zeros(zeros, np.float32) if stacked is None else stacked[int(index)]
                )
        return arrays

    def run(self, binding: ort.IOBinding) -> None:
        self._session.run_with_iobinding(binding)


class BoundStep:
    """A step with fixed buffers: fill `token_ids` and run.

    token_ids, positions: int64 [1, Q] input buffers; mask rows are filled already. num_slots: cache
    slots that it writes behind the text.
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
        self._offsets = layout.offsets
        num_rows, num_outputs = layout.num_rows, len(layout.output_rows)
        self.num_rows = num_rows
        self.num_slots = max(num_rows, backend.least_slots)
        self.token_ids = np.zeros((1, num_rows), np.int64)
        masks = layout.mask_index >= 0
        self.token_ids[0, masks] = backend.vocab_size + layout.mask_index[masks]
        self.positions = np.zeros((1, num_rows), np.int64)
        self._cache_length = np.zeros(1, np.int64)
        self.top_ids = np.zeros((num_outputs, backend.num_ranks), np.int64)
        self.top_logits = np.zeros((num_outputs, backend.num_ranks), np.float32)
        self.logits = (
            np.zeros((num_outputs, backend.vocab_size), np.float32) if with_logits else None
        )
        inputs: Arrays = {
            "token_ids": self.token_ids,
            "positions": self.positions,
            "cache_length": self._cache_length,
            "sees": layout.sees,
            "sees_prefix": layout.sees_prefix,
            "output_rows": layout.output_rows,
            "mask_embeddings": adapter.mask_embeddings,
            "prefix_length": np.array([adapter.prefix_length]),
        }
        outputs: Arrays = {"top_ids": self.top_ids, "top_logits": self.top_logits}
        if backend.has_lora:
            inputs["first_mask_row"] = np.array([layout.first_mask_row])
            inputs |= backend.lora_inputs(adapter)
        if self.logits is not None:
            outputs["logits"] = self.logits
        # The binding does not keep the arrays alive; these OrtValues do.
        self._inputs = _ort_values(inputs)
        self._outputs = _ort_values(outputs)
        self._binding = self._bind()

    def run(self) -> None:
        """Execute the step behind the cached text; raises EngineError if it has no room there."""
        if self._cache.num_slots_used + self.num_slots > self._cache.capacity:
            raise EngineError(
                f"a step of {self.num_rows} rows does not fit behind {self._cache.num_slots_used} "
                f"of {self._cache.capacity} cache slots"
            )
        np.add(self._offsets, self._cache.length, out=self.positions[0])
        self._cache_length[0] = self._cache.num_slots_used
        self._backend.run(self._binding)

    def probed(self) -> Arrays:
        """The probes' values in the last step."""
        values = self._binding.get_outputs()[-len(self._probes) :] if self._probes else []
        return {name: value.numpy() for name, value in zip(self._probes, values, strict=True)}

    def _bind(self) -> ort.IOBinding:
        binding = self._backend.new_binding()
        for name, value in self._inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            binding.bind_ortvalue_output(name, value)
        for name in self._probes:
            binding.bind_output(name)
        return binding


def _ort_values(arrays: Arrays) -> dict[str, ort.OrtValue]:
    """OrtValues over the memory of numpy arrays."""
    return {
        name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        for name, array in arrays.items()
    }


def _cache_type(session: ort.InferenceSession) -> npt.DTypeLike:
    """Of past and present; some graphs keep them in float16."""
    types = {value.name: value.type for value in session.get_inputs()}
    return np.float16 if types["past.0.key"] == "tensor(float16)" else np.float32


def _load(engine: Engine, num_threads: int, graph: bytes | None) -> ort.InferenceSession:
    _check_version(engine)
    _check_processor(engine)
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry(WEIGHTS_FOLDER, str(engine.path))
    try:
        return ort.InferenceSession(
            graph or engine.file(GRAPH_FILE), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the binding raises many kinds, all of them about the file
        raise EngineError(
            f"ONNX Runtime {ort.__version__} cannot load {engine.file(GRAPH_FILE)}: "
            f"{str(error).splitlines()[0]}; rebuild the engine, or upgrade onnxruntime"
        ) from error


def _check_version(engine: Engine) -> None:
    least = engine.manifest.requires.get("onnxruntime", "0")
    if _numbers(ort.__version__) < _numbers(least):
        raise EngineError(
            f"engine {engine.path} needs onnxruntime {least} or newer; {ort.__version__} is "
            f"installed: pip install 'onnxruntime>={least}'"
        )


def _check_processor(engine: Engine) -> None:
    if engine.manifest.requires.get(PROCESSOR) == EXACT_INT8 and not multiplies_int8_exactly():
        raise EngineError(
            f"engine {engine.path} has int8 weights for processors with VNNI; this one has none, "
            f"and would give another text: rebuild it here: make engine "
            f"MODEL={engine.manifest.model} PRECISION=int8"
        )


def _numbers(version: str) -> list[int]:
    """1.23.2 -> [1, 23, 2]; what is behind the numbers is left out."""
    return [int(number) for number in re.findall(r"\d+", version)[:3]]
