"""Steps executed by ONNX Runtime on a GPU, each decode step as one captured CUDA graph.

Caches, inputs and outputs have fixed GPU addresses and are bound once. Our copies and the
provider's kernels share one stream.
"""

from collections.abc import Sequence
from itertools import count

import onnxruntime as ort

from bita.adapter import Adapter
from bita.engine import Engine
from bita.errors import EngineError
from bita.runtime.backends.cuda import Cuda
from bita.runtime.backends.device_memory import DeviceCache
from bita.runtime.backends.device_step import Device, DeviceStep, rows_with_equal_bits
from bita.runtime.backends.layout import PREFILL_ROWS, Layout
from bita.runtime.backends.ort_session import cache_type, check_session, load_session, step_error
from bita.runtime.backends.pair_scores import EnginePairs

NOT_CAPTURED = "-1"  # a value of `gpu_graph_id`


class OrtCudaBackend:
    """An engine loaded into ONNX Runtime's CUDA provider, and its cache on the GPU.

    cuda_graph: whether to launch decode steps as captured graphs.

    Raises EngineError if the engine cannot run here.
    """

    provider, device_type = "CUDAExecutionProvider", "cuda"
    min_slots = 1
    prefill_rows = PREFILL_ROWS
    exact_trees = False

    def __init__(self, engine: Engine, cuda_graph: bool = True, cuda: Cuda | None = None) -> None:
        manifest = engine.manifest
        self._engine = engine
        self.vocab_size, self.num_ranks = manifest.vocab_size, manifest.num_ranks
        self.pairs = EnginePairs(engine)
        self._check_provider(engine)
        cuda = cuda or Cuda.load()
        free = cuda.memory()[0]
        stream = cuda.stream()
        provider = self.provider, provider_options(cuda.device, stream.handle, cuda_graph)
        self._session = load_session(engine, ort.SessionOptions(), providers=[provider])
        check_session(engine, self._session)
        self._loaded_bytes = max(free - cuda.memory()[0], 0)
        inputs = {value.name: value for value in self._session.get_inputs()}
        lora = {name: value.shape for name, value in inputs.items() if name.startswith("lora.")}
        kind = cache_type(self._session)
        self.device = Device(cuda, manifest, kind, False, lora, stream)
        self._names = {*inputs, *(value.name for value in self._session.get_outputs())}
        self._cuda_graph = cuda_graph
        self._graph_ids = count()

    @property
    def cache(self) -> DeviceCache:
        return self.device.cache

    @property
    def device_bytes(self) -> int:
        """Peak of our allocations, plus the provider's memory when it was loaded."""
        return self.device.cuda.peak_bytes + self._loaded_bytes

    def bind(self, layout: Layout, adapter: Adapter, with_logits: bool = False) -> DeviceStep:
        """Return a step of this layout with this adapter."""
        decodes = len(layout.output_rows) == layout.num_rows
        launcher = _Launcher(self, captures=self._cuda_graph and decodes)
        return DeviceStep(self.device, layout, adapter, with_logits, launcher)

    def joint_step(self, adapter: Adapter) -> None:
        """Return None: the cache holds one text."""

    def min_exact_rows(self, adapter: Adapter, sizes: Sequence[int] = ()) -> int:
        """Return the smallest step size from which a row is bit-identical; clears the text."""
        return rows_with_equal_bits(self.bind, self.device.cache, adapter, sizes or (1,))

    def binding(self, step: DeviceStep, bucket: int) -> ort.IOBinding:
        """Return a binding to the step's tensors on the GPU."""
        binding = self._session.io_binding()
        for name, array in step.inputs(bucket).items():
            if name in self._names:
                place = (array.dtype.type, array.shape, array.address)
                binding.bind_input(name, self.device_type, self.device.cuda.device, *place)
        for name, array in step.outputs().items():
            place = (array.dtype.type, array.shape, array.address)
            binding.bind_output(name, self.device_type, self.device.cuda.device, *place)
        return binding

    def run(self, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        """Queue a step in the stream. Raises EngineError if an operator of the graph fails."""
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # the binding raises many kinds
            raise step_error(self._engine, error) from error

    def run_options(self, captures: bool) -> ort.RunOptions:
        """Return run options for one step and bucket; each captured graph has its own number."""
        options = ort.RunOptions()
        if self._cuda_graph:
            number = str(next(self._graph_ids)) if captures else NOT_CAPTURED
            options.add_run_config_entry("gpu_graph_id", number)
        # the host waits for the stream once, after the copy of the results
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options

    def _check_provider(self, engine: Engine) -> None:
        if self.provider not in ort.get_available_providers():
            raise EngineError(
                f"engine {engine.path} needs ONNX Runtime's CUDA provider, which onnxruntime "
                f"{ort.__version__} does not have: pip uninstall onnxruntime, then pip install "
                "onnxruntime-gpu; or run it on the CPU: --backend ort-cpu"
            )


class _Launcher:
    def __init__(self, backend: OrtCudaBackend, captures: bool) -> None:
        self._backend = backend
        self._captures = captures
        self._bound: dict[int, tuple[ort.IOBinding, ort.RunOptions]] = {}

    def launch(self, step: DeviceStep, bucket: int) -> None:
        """Queue the step in the stream."""
        if bucket not in self._bound:
            binding = self._backend.binding(step, bucket)
            self._bound[bucket] = binding, self._backend.run_options(self._captures)
        step.upload()
        self._backend.run(*self._bound[bucket])
        step.download()


def provider_options(device: int, stream: int, cuda_graph: bool) -> dict[str, str]:
    """Return options of the CUDA provider: it uses our stream, and full float32 precision."""
    options = {"device_id": str(device), "user_compute_stream": str(stream), "use_tf32": "0"}
    return {**options, "enable_cuda_graph": "1"} if cuda_graph else options
