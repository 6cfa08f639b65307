"""Compile a step graph into a TensorRT or TensorRT-RTX plan.

TensorRT builds for the GPU it runs on, and times kernels there. TensorRT-RTX needs no GPU: a plan
holds kernels for each requested generation, and the last part of their compilation happens on the
device. A plan has a profile for prefill, with a variable number of rows, and a profile for each
size of a decode step, which accepts only this size.
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

Dims = tuple[int, int, int]  # minimum, usual value and maximum
Profile = Mapping[str, Dims]  # by the names of the graph's free dimensions
PORTABLE = ("sm86", "sm89", "sm120")  # default targets of a TensorRT-RTX plan


@dataclass(frozen=True)
class PlanOptions:
    """The dimensions and targets of a plan."""

    library: str  # "tensorrt" or "tensorrt_rtx"
    capacity: int  # C, cache slots
    decode_rows: tuple[int, ...]  # Q of each size of a decode step; all rows are output rows
    prefill_rows: int  # maximum Q of a prefill step
    prefill_outputs: int  # maximum number of output rows of a prefill step
    num_masks: int  # M
    lora_rank: int = 0  # r; 0 without LoRA
    targets: tuple[str, ...] = PORTABLE  # GPU generations; for TensorRT the one of this machine

    def profiles(self) -> tuple[Profile, ...]:
        """Return the profile of prefill, and then that of each decode size."""
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
    """Compile a graph and write its plan. The memory needed is that of `build_costs`.

    Args:
        graph: model.onnx, with its weights in the same directory.
        out: The file of the plan.
        options: Dimensions and targets of the plan.
        on_progress: Called with the progress of each phase.

    Raises:
        EngineError: if the plan cannot be built; the error names the ONNX node at fault, or how to
            install a missing library.
    """
    trt = load_library(options.library)
    log = error_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt, options.library))
    shapes = _read_shapes(graph)
    _parse(trt, network, graph, log)
    _check_caches(trt, network, options.library)
    _allow_decomposed_attention(trt, network)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # the graph has float32 where its precision matters
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
    """Return whether the installed library has the operators of a dialect of PLAN_DIALECTS."""
    oldest = DIALECTS[dialect].min_tensorrt
    if oldest is None:
        return False
    return library == RTX or not oldest or version_of(load_library(library)) >= oldest


def version_of(trt: Any) -> tuple[int, ...]:
    """Return the version as numbers: (10, 3, 0, 26) for "10.3.0.26"."""
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
    """Return the flags of a strongly typed network, the only kind in newer libraries."""
    if library == RTX or version_of(trt)[0] >= 11:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _monitor(trt: Any, on_progress: OnProgress) -> Any:
    """Return a monitor that reports top-level phases.

    An exception raised meanwhile, including an interrupt, cannot propagate through the library: it
    ends the build and is stored as `raised`.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}
            self.raised: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.totals[phase_name] = num_steps
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return self.raised is None

        def phase_finish(self, phase_name: str) -> None:
            self._report(phase_name, self.totals.get(phase_name, 0))
            self.totals.pop(phase_name, None)

        def _report(self, phase_name: str, done: int) -> None:
            try:
                if phase_name in self.totals and self.raised is None:
                    on_progress(phase_name, done, self.totals[phase_name])
            except BaseException as error:
                self.raised = error

    return Monitor()


def _read_shapes(graph: Path) -> dict[str, list[int | str]]:
    """Return the shapes of the graph's inputs, with the names of free dimensions.

    They are read from the file, since older parsers of TensorRT do not keep the names.
    """
    try:
        inputs = ir.load(graph).graph.inputs
    except Exception as error:  # types of protobuf and onnx_ir, all of them faults of the file
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
    """Check that every output cache is updated in place, not copied in every step."""
    names = [network.get_output(index).name for index in range(network.num_outputs)]
    num_caches = sum(name.startswith("present.") for name in names)
    if not num_caches:
        return
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    num_updated = kinds.count(getattr(trt.LayerType, "KV_CACHE_UPDATE", None))
    if num_updated != num_caches:
        raise EngineError(
            f"{_title(library)} {trt.__version__} would update only {num_updated} of {num_caches} "
            "caches in place; export the graph again with --dialect plain"
        )


def _allow_decomposed_attention(trt: Any, network: Any) -> None:
    """Allow the library to run Attention as several kernels if it has no fused one (float32)."""
    kind = getattr(trt.LayerType, "ATTENTION_OUTPUT", None)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if kind is not None and layer.type == kind:
            layer.__class__ = trt.IAttentionOutputLayer  # the library's way to downcast a layer
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
    """Return the library's reason, in which layers are named after ONNX nodes, with advice."""
    advice = "try another --precision, or --dialect plain"
    if "memory" in reason.lower():
        advice = "free some memory, or use a smaller --capacity or fewer --rows"
    return (
        f"{_title(options.library)} {trt.__version__} cannot build for "
        f"{', '.join(options.targets)}: {reason}; {advice}"
    )
