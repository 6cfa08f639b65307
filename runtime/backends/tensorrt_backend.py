"""Steps executed by TensorRT or TensorRT-RTX from an engine's plan.

A decode step is captured as a CUDA graph, including the copies of its inputs and outputs, so that
the host only launches it. Every step has a separate context for each number of cache slots that it
reads; contexts run one at a time and share the memory for activations.
"""

from collections.abc import Sequence
from hashlib import sha256
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from bita.adapter import Adapter
from bita.engine import NEW_ROWS, PLAN_FILE, Engine
from bita.errors import EngineError, raise_faults
from bita.plan import RTX, PlanInfo
from bita.runtime.backends.cuda import Cuda, Graph, Stream
from bita.runtime.backends.device_memory import DeviceArray, DeviceCache
from bita.runtime.backends.device_step import Device, DeviceStep, rows_with_equal_bits
from bita.runtime.backends.graph_fit import GraphValue, check_graph
from bita.runtime.backends.kernel_cache import KernelCache
from bita.runtime.backends.layout import PREFILL_ROWS, Layout, widen
from bita.runtime.backends.pair_scores import EnginePairs
from bita.runtime.backends.tensorrt_library import error_log, load_library

OUTPUTS = ("top_ids", "top_logits", "logits", NEW_ROWS)  # besides the present caches
PREFILL_PROFILE = 0  # followed by one profile for each of PlanInfo.decode_rows


class TensorRtBackend:
    """A plan loaded on the GPU, and its cache.

    cuda_graph: whether to launch decode steps as captured graphs.

    Raises EngineError if the plan is damaged, or was built for another GPU or library.
    """

    min_slots = 1
    prefill_rows = PREFILL_ROWS
    exact_trees = False

    def __init__(self, engine: Engine, cuda_graph: bool = True, cuda: Cuda | None = None) -> None:
        manifest = engine.manifest
        self.vocab_size, self.num_ranks = manifest.vocab_size, manifest.num_ranks
        self.info = PlanInfo.from_manifest(manifest.plan)
        self.pairs = EnginePairs(engine)
        self._num_masks = manifest.num_masks
        trt = load_library(self.info.library)
        check_version(engine, self.info, trt)
        cuda = cuda or Cuda.load()
        check_device(engine, self.info, cuda)
        self._plan = _Plan(trt, engine, cuda)
        names = self._plan.shapes
        self._plan.check(engine)
        self.device = Device(
            cuda,
            manifest,
            self._plan.dtype("past.0.key"),
            NEW_ROWS in names,
            {name: self._plan.lora_shape(name) for name in names if name.startswith("lora.")},
        )
        size = (self.info.prefill_outputs, self.vocab_size)
        memory = cuda.allocate(4 * size[0] * size[1])
        self._logits = DeviceArray(memory.address, size, np.dtype(np.float32), memory)
        self._cuda_graph = cuda_graph

    @property
    def cache(self) -> DeviceCache:
        return self.device.cache

    @property
    def device_bytes(self) -> int:
        """Peak of our allocations, plus the plan's memory."""
        return self.device.cuda.peak_bytes + self._plan.held_bytes

    def bind(self, layout: Layout, adapter: Adapter, with_logits: bool = False) -> DeviceStep:
        """Return a step of this layout, padded to the plan's next size."""
        _check_masks(adapter, self._num_masks)
        layout, profile = fit_layout(layout, self.info)
        unasked = self._logits.shaped(len(layout.output_rows), self.vocab_size)
        capture = self._cuda_graph and profile != PREFILL_PROFILE
        launcher = _Launcher(self._plan, self.device.stream, profile, capture)
        return DeviceStep(self.device, layout, adapter, with_logits, launcher, unasked)

    def joint_step(self, adapter: Adapter) -> None:
        """Return None: the cache holds one text."""

    def min_exact_rows(self, adapter: Adapter, sizes: Sequence[int] = ()) -> int:
        """Return the smallest step size from which a row is bit-identical; clears the text."""
        return rows_with_equal_bits(self.bind, self.device.cache, adapter, sizes or (1,))


def fit_layout(layout: Layout, info: PlanInfo) -> tuple[Layout, int]:
    """Return the layout padded to a size of the plan, and the profile of that size.

    Raises EngineError if the layout is too large for the plan.
    """
    decodes = len(layout.output_rows) == layout.num_rows
    for number, rows in enumerate(info.decode_rows):
        if decodes and layout.num_rows <= rows:
            return widen(layout, rows), PREFILL_PROFILE + 1 + number
    num_outputs = len(layout.output_rows)
    if layout.num_rows <= info.prefill_rows and num_outputs <= info.prefill_outputs:
        return layout, PREFILL_PROFILE
    raise EngineError(
        f"a step of {layout.num_rows} rows, {num_outputs} of them output rows, is too large for "
        f"the plan, whose largest has {info.decode_rows[-1]}: bita compile ENGINE --rows "
        f"{layout.num_rows}"
    )


def check_version(engine: Engine, info: PlanInfo, trt: Any) -> None:
    """Raise EngineError if the plan was built with another version of the installed library."""
    if trt.__version__ != info.version:
        raise EngineError(
            f"{engine.file(PLAN_FILE)} was built with {info.name}; {trt.__version__} is "
            f"installed. Compile it again: bita compile {engine.path}"
        )


def check_device(engine: Engine, info: PlanInfo, cuda: Cuda) -> None:
    """Raise EngineError if the plan has no kernels for the GPU."""
    if cuda.capability not in info.targets:
        target = f" --target {cuda.capability}" if info.library == RTX else ""
        raise EngineError(
            f"{engine.file(PLAN_FILE)} was built for {', '.join(info.targets)} with {info.name}; "
            f"this GPU is {cuda.capability}. Compile it here: bita compile {engine.path}{target}"
        )


def _check_masks(adapter: Adapter, num_masks: int) -> None:
    if adapter.num_masks != num_masks:
        raise EngineError(
            f"the adapter has {adapter.num_masks} masks, the plan was built for {num_masks}: "
            "build an engine with ADAPTER=…"
        )


class _Plan:
    """A deserialized plan.

    shapes: shapes of its inputs and outputs, -1 where a size varies.
    held_bytes: GPU memory of the plan and its contexts.
    """

    def __init__(self, trt: Any, engine: Engine, cuda: Cuda) -> None:
        self._trt, self._cuda = trt, cuda
        path = engine.file(PLAN_FILE)
        self._log = error_log(trt)
        self._runtime = trt.Runtime(self._log)
        self._runtime.engine_host_code_allowed = False
        free = cuda.memory()[0]
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as plan:
            _check_hash(engine, path, plan)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                f"{trt.__name__} {trt.__version__} cannot load {path}: {self._log.reason}; compile "
                f"it here: bita compile {engine.path}"
            )
        self.held_bytes = max(free - cuda.memory()[0], 0)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.shapes = {name: tuple(self._engine.get_tensor_shape(name)) for name in names}
        digest = engine.files[PLAN_FILE]["sha256"]
        self._kernels = KernelCache(trt, self._engine, digest, cuda.capability)
        self._scratch = cuda.allocate(max(self._engine.device_memory_size_v2, 1))

    def check(self, engine: Engine) -> None:
        """Raise EngineError if inputs or outputs differ from the manifest."""
        values = {
            name: GraphValue(
                np.dtype(self.dtype(name)).name,
                tuple(None if size < 0 else size for size in shape),
            )
            for name, shape in self.shapes.items()
        }
        outputs = {name for name in values if name in OUTPUTS or name.startswith("present.")}
        check_graph(
            engine.file(PLAN_FILE),
            engine.manifest,
            {name: value for name, value in values.items() if name not in outputs},
            {name: values[name] for name in outputs},
        )

    def dtype(self, name: str) -> Any:
        return self._trt.nptype(self._engine.get_tensor_dtype(name))

    def lora_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a LoRA input, whose rank is fixed in all profiles."""
        return tuple(self._engine.get_tensor_profile_shape(name, PREFILL_PROFILE)[2])

    def context(self, profile: int, step: DeviceStep, bucket: int, stream: int) -> Any:
        """Return a context bound to the step's tensors. Raises EngineError if they do not fit."""
        free = self._cuda.memory()[0]
        context = self._kernels.new_context()
        context.set_device_memory(self._scratch.address, self._scratch.num_bytes)
        context.set_optimization_profile_async(profile, stream)
        faults = []
        for name, array in step.inputs(bucket).items():
            if name in self.shapes and not context.set_input_shape(name, array.shape):
                faults.append(f"input {name} cannot have shape {array.shape}: {self._log.reason}")
        for name, array in {**step.inputs(bucket), **step.outputs()}.items():
            if name in self.shapes:
                context.set_tensor_address(name, array.address)
        missing = {*self.shapes} - {*step.inputs(bucket), *step.outputs()}
        faults += [f"the plan has an unknown tensor {name}" for name in sorted(missing)]
        raise_faults(EngineError, "a step does not fit the plan", faults)
        self.held_bytes += max(free - self._cuda.memory()[0], 0)
        return context

    def enqueue(self, context: Any, stream: int) -> None:
        if not context.execute_async_v3(stream):
            raise EngineError(f"{self._trt.__name__} cannot run a step: {self._log.reason}")

    def keep_kernels(self) -> None:
        """Store the kernels compiled on this GPU for the next start."""
        self._kernels.save()


class _Launcher:
    """Executes one step: the first time kernel by kernel, afterwards as a captured graph."""

    def __init__(self, plan: _Plan, stream: Stream, profile: int, capture: bool) -> None:
        self._plan = plan
        self._stream = stream
        self._profile = profile
        self._capture = capture
        self._contexts: dict[int, Any] = {}
        self._graphs: dict[int, Graph] = {}

    def launch(self, step: DeviceStep, bucket: int) -> None:
        """Queue the step in the stream."""
        if bucket in self._graphs:
            self._graphs[bucket].launch(self._stream)
            return
        known = bucket in self._contexts
        if not known:
            self._contexts[bucket] = self._plan.context(
                self._profile, step, bucket, self._stream.handle
            )
        if known and self._capture:
            with self._stream.capture() as graph:
                self._enqueue(step, bucket)
            self._graphs[bucket] = graph
            graph.launch(self._stream)
            return
        self._enqueue(step, bucket)
        if not known:
            self._plan.keep_kernels()

    def _enqueue(self, step: DeviceStep, bucket: int) -> None:
        step.upload()
        self._plan.enqueue(self._contexts[bucket], self._stream.handle)
        step.download()


def _check_hash(engine: Engine, path: Path, plan: mmap) -> None:
    """Raise EngineError unless the manifest has the plan's hash; a plan contains code."""
    if sha256(plan).hexdigest() != engine.files[PLAN_FILE]["sha256"]:
        raise EngineError(
            f"{path} is damaged (sha256 differs); copy it again, or compile it here: bita compile "
            f"{engine.path}"
        )
