"""From a step graph to a TensorRT or TensorRT-RTX plan; one body for both libraries.

TensorRT builds for the GPU it runs on, and times kernels there. TensorRT-RTX needs no GPU: a plan
holds kernels for each generation asked for, whose last part is compiled on the device. A plan has a
profile for prefill, whose rows vary, and one for each size of a decode step, which is all it takes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from bita.dialect_spec import DIALECTS
from bita.errors import EngineError, raise_faults
from bita.export.tensorrt.timing_cache import keep_timings
from bita.plan import NAMES, RTX, PlanInfo
from bita.progress import OnProgress, ignore_progress
from bita.runtime.backends.buckets import Buckets
from bita.runtime.backends.tensorrt_library import error_log, load_library

Dims = tuple[int, int, int]  # least, usual and most
Profile = Mapping[str, Dims]  # by the names that the graph has for its free dimensions
PORTABLE = ("sm86", "sm89", "sm120")  # what one plan of TensorRT-RTX may serve


@dataclass(frozen=True)
class PlanOptions:
    """library: "tensorrt" or "tensorrt_rtx". capacity: C. decode_rows: Q of each size of a decode
    step, all of whose rows give tokens. prefill_rows: most of another step, of which
    prefill_outputs give tokens. num_masks: M. lora_rank: r, 0 without LoRA. targets: GPU
    generations, "sm86" and so on; for TensorRT the one here.
    """

    library: str
    capacity: int
    decode_rows: tuple[int, ...]
    prefill_rows: int
    prefill_outputs: int
    num_masks: int
    lora_rank: int = 0
    targets: tuple[str, ...] = PORTABLE

    def profiles(self) -> tuple[Profile, ...]:
        """Of prefill, then of each decode size."""
        sizes = Buckets.of(self.capacity).sizes
        fixed = {
            "M": _always(self.num_masks),
            "r": _always(self.lora_rank),
            "S": (sizes[0], sizes[min(1, len(sizes) - 1)], sizes[-1]),
        }
        prefill = {
            "Q": (1, min(128, self.prefill_rows), self.prefill_rows),
            "R": (1, 1 + self.num_masks, self.prefill_outputs),
        }
        decode = [{"Q": _always(rows), "R": _always(rows)} for rows in self.decode_rows]
        return tuple({**fixed, **sizes} for sizes in (prefill, *decode))


def compile_plan(
    graph: Path,
    out: Path,
    options: PlanOptions,
    on_progress: OnProgress = ignore_progress,
) -> PlanInfo:
    """Write the plan of `graph` (model.onnx, its weights beside it) to `out`.

    Memory: see `build_costs`. Raises EngineError that names the ONNX node where the graph is at
    fault, or the install line where the library is missing.
    """
    trt = load_library(options.library)
    log = error_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt, options.library))
    shapes = _read_shapes(graph)
    _parse(trt, network, graph, log)
    _check_caches(trt, network, options.library)
    _let_attention_decompose(trt, network)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is asked for where its digits count
    config.progress_monitor = monitor = _monitor(trt, on_progress)
    if options.library == RTX:
        _set_targets(trt, config, options.targets)
    for profile in options.profiles():
        config.add_optimization_profile(_optimization_profile(builder, shapes, profile))
    with keep_timings(trt, config, options.library, options.targets):
        plan = builder.build_serialized_network(network, config)
        if monitor.raised:
            raise monitor.raised
    if plan is None:
        raise EngineError(_failure(trt, options, log.reason))
    out.write_bytes(memoryview(plan))
    return PlanInfo(
        options.library,
        trt.__version__,
        options.targets,
        options.decode_rows,
        options.prefill_rows,
        options.prefill_outputs,
    )


def reads(library: str, dialect: str) -> bool:
    """Whether the library that is installed has the operators of one of PLAN_DIALECTS."""
    oldest = DIALECTS[dialect].min_tensorrt
    if oldest is None:
        return False
    return library == RTX or not oldest or version_of(load_library(library)) >= oldest


def version_of(trt: Any) -> tuple[int, ...]:
    """(10, 3, 0, 26) of "10.3.0.26"."""
    return tuple(int(part) for part in trt.__version__.split(".") if part.isdigit())


def check_targets(library: str, targets: Sequence[str]) -> None:
    """Raise EngineError that lists every target the library cannot build for."""
    if library != RTX:
        return
    trt = load_library(library)
    known = _capabilities(trt)
    faults = [
        f"target {target!r} is not one of {', '.join(known)}"
        for target in targets
        if target not in known
    ]
    raise_faults(EngineError, f"TensorRT-RTX {trt.__version__}", faults)


def _title(library: str) -> str:
    return NAMES.get(library, library)


def _always(size: int) -> Dims:
    return size, size, size


def _network_flags(trt: Any, library: str) -> int:
    """Strongly typed; newer libraries know no other kind."""
    if library == RTX or version_of(trt)[0] >= 11:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _monitor(trt: Any, on_progress: OnProgress) -> Any:
    """Tells the phases that are not parts of others.

    What is raised meanwhile, an interrupt too, cannot pass through the library: it ends the build,
    and is kept as `raised`.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}
            self.raised: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.totals[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.raised is None

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self.totals.get(phase_name, 0))
            self.totals.pop(phase_name, None)

        def _tell(self, phase_name: str, done: int) -> None:
            try:
                if phase_name in self.totals and self.raised is None:
                    on_progress(phase_name, done, self.totals[phase_name])
            except BaseException as error:
                self.raised = error

    return Monitor()


def _read_shapes(graph: Path) -> dict[str, list[int | str]]:
    """Of the graph's inputs; free dimensions by their names. Older parsers do not keep them."""
    try:
        inputs = ir.load(graph).graph.inputs
    except Exception as error:  # protobuf's and onnx_ir's own kinds, all of them about the file
        raise EngineError(f"{graph} cannot be read ({error}); rebuild the engine") from error
    return {
        str(value.name): [
            size if isinstance(size, int) else str(size) for size in value.shape or ()
        ]
        for value in inputs
    }


def _parse(trt: Any, network: Any, graph: Path, log: Any) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(graph)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    faults = [f"node {e.node_name()} ({e.node_operator()}): {e.desc()}" for e in errors]
    name = f"{_title(trt.__name__)} {trt.__version__}"
    raise_faults(EngineError, f"{name} cannot read {graph}; try --dialect plain", faults)


def _check_caches(trt: Any, network: Any, library: str) -> None:
    """Each cache that leaves is to be written in its own memory, not copied in every step."""
    names = [network.get_output(index).name for index in range(network.num_outputs)]
    num_caches = sum(name.startswith("present.") for name in names)
    if not num_caches:
        return
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    num_updated = kinds.count(getattr(trt.LayerType, "KV_CACHE_UPDATE", None))
    if num_updated != num_caches:
        raise EngineError(
            f"{_title(library)} {trt.__version__} would update {num_updated} of {num_caches} "
            "caches in place; export the graph anew, with --dialect plain"
        )


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """Let the library write Attention as several kernels where it has no fused one (float32)."""
    kind = getattr(trt.LayerType, "ATTENTION_OUTPUT", None)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if kind is not None and layer.type == kind:
            layer.__class__ = trt.IAttentionOutputLayer  # the library's own way to narrow a layer
            layer.attention.decomposable = True


def _set_targets(trt: Any, config: Any, targets: Sequence[str]) -> None:
    check_targets(RTX, targets)
    known = _capabilities(trt)
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(known[target], index)


def _capabilities(trt: Any) -> dict[str, Any]:
    members = vars(trt.ComputeCapability)
    return {f"sm{name[2:]}": value for name, value in members.items() if name.startswith("SM")}


def _optimization_profile(
    builder: Any, shapes: Mapping[str, Sequence[int | str]], sizes: Profile
) -> Any:
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        if any(isinstance(size, str) for size in shape):
            profile.set_shape(name, *(_sized(shape, sizes, kind) for kind in range(3)))
    return profile


def _sized(shape: Sequence[int | str], sizes: Profile, kind: int) -> list[int]:
    return [size if isinstance(size, int) else sizes[size][kind] for size in shape]


def _failure(trt: Any, options: PlanOptions, reason: str) -> str:
    """What the library says, in which layers have the names of ONNX nodes, and what may help."""
    advice = "try another --precision, or --dialect plain"
    if "memory" in reason.lower():
        advice = "free some memory, or take a smaller --capacity or fewer --rows"
    return (
        f"{_title(options.library)} {trt.__version__} cannot build for "
        f"{', '.join(options.targets)}: {reason}; {advice}"
    )
