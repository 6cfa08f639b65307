"""From a step graph in the standard dialect to a TensorRT-RTX plan, without a GPU.

A plan holds kernels for each GPU generation asked for; their last part is compiled on the device.
It has two profiles: prefill, whose rows vary, and decode, whose rows are those of the tree.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bita.errors import EngineError, raise_faults

LIBRARY = "tensorrt_rtx"
INSTALL = "pip install tensorrt-rtx-cu13"
Dims = tuple[int, int, int]  # least, usual and most
Profile = Mapping[str, Dims]  # by the names that the graph has for its free dimensions


@dataclass(frozen=True)
class PlanOptions:
    """targets: GPU generations, "sm86" and so on.

    tree_rows: Q of a decode step. tree_outputs: R of it. prefill_rows: most of one prefill step.
    num_masks: M. lora_rank: r, 0 without LoRA.
    """

    tree_rows: int
    tree_outputs: int
    num_masks: int
    lora_rank: int = 0
    prefill_rows: int = 512
    targets: tuple[str, ...] = ("sm86", "sm89", "sm120")

    def profiles(self) -> tuple[Profile, Profile]:
        """Of prefill and decode."""
        fixed = {"M": _always(self.num_masks), "r": _always(self.lora_rank)}
        usual = min(128, self.prefill_rows)
        outputs = 1 + self.num_masks
        prefill = {"Q": (1, usual, self.prefill_rows), "R": (1, outputs, outputs)}
        decode = {"Q": _always(self.tree_rows), "R": _always(self.tree_outputs)}
        return {**fixed, **prefill}, {**fixed, **decode}


def compile_plan(graph: Path, options: PlanOptions) -> bytes:
    """The plan of `graph` (model.onnx, its weights beside it).

    Memory: a few times the weights, on the host. Raises EngineError that names the ONNX node where
    the graph is at fault, or the install line where the library is missing.
    """
    trt = _library()
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0)  # strongly typed, there is no other kind
    _parse(trt, network, graph, logger)
    _check_caches(trt, network)
    _let_attention_decompose(trt, network)
    config = builder.create_builder_config()
    _set_targets(trt, config, options.targets)
    for profile in options.profiles():
        config.add_optimization_profile(_optimization_profile(builder, network, profile))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        targets = ", ".join(options.targets)
        reason = logger.messages[-1] if logger.messages else "no reason given"
        raise EngineError(f"TensorRT-RTX {trt.__version__} cannot build for {targets}: {reason}")
    return bytes(plan)


def _always(size: int) -> Dims:
    return size, size, size


def _library() -> Any:
    try:
        return importlib.import_module(LIBRARY)
    except ImportError as error:
        raise EngineError(f"TensorRT-RTX is not installed ({error}); {INSTALL}") from error


def _logger(trt: Any) -> Any:
    """A logger that keeps what went wrong and prints nothing."""

    class Messages(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.messages.append(message)

    return Messages()


def _parse(trt: Any, network: Any, graph: Path, logger: Any) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(graph)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    faults = [f"node {e.node_name()} ({e.node_operator()}): {e.desc()}" for e in errors]
    raise_faults(EngineError, f"TensorRT-RTX {trt.__version__} cannot read {graph}", faults)


def _check_caches(trt: Any, network: Any) -> None:
    """Each cache is to be written in its own memory, not copied in every step."""
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    num_caches = sum(name.startswith("past.") for name in names)
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    num_updated = kinds.count(trt.LayerType.KV_CACHE_UPDATE)
    if num_updated != num_caches:
        raise EngineError(
            f"TensorRT-RTX {trt.__version__} would update {num_updated} of {num_caches} caches in "
            "place; export the graph anew"
        )


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """Let the library write Attention as several kernels where it has no fused one (float32)."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_OUTPUT:
            layer.__class__ = trt.IAttentionOutputLayer  # the library's own way to narrow a layer
            layer.attention.decomposable = True


def _set_targets(trt: Any, config: Any, targets: Sequence[str]) -> None:
    known = {f"sm{name[2:]}": value for name, value in _capabilities(trt).items()}
    faults = [
        f"target {target!r} is not one of {', '.join(known)}"
        for target in targets
        if target not in known
    ]
    raise_faults(EngineError, f"TensorRT-RTX {trt.__version__}", faults)
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(known[target], index)


def _capabilities(trt: Any) -> dict[str, Any]:
    return {n: v for n, v in vars(trt.ComputeCapability).items() if n.startswith("SM")}


def _optimization_profile(builder: Any, network: Any, sizes: Profile) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        names = [tensor.get_dimension_name(axis) for axis in range(len(shape))]
        profile.set_shape(
            tensor.name,
            *(
                [
                    sizes[name][kind] if size == -1 else size
                    for name, size in zip(names, shape, strict=True)
                ]
                for kind in range(3)
            ),
        )
    return profile
