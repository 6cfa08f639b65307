"""Load an engine's graph into an ONNX Runtime session, and check it against the manifest."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from bita.dialect_spec import NATIVE
from bita.engine import (
    GRAPH_FILE,
    MIN_SLOTS,
    OPERATORS,
    OPERATORS_VERSION,
    WEIGHTS_FILE,
    Engine,
)
from bita.errors import EngineError, LibraryMissingError
from bita.json_values import shown
from bita.runtime.backends.graph_fit import GraphValue, check_graph
from bita.runtime.backends.processor import EXACT_INT8, PROCESSOR, multiplies_int8_exactly
from bita.runtime.backends.threads import default_threads
from bita.runtime.native.library import loaded_operators

NOTHING_LOGGED = 4  # errors are raised; ONNX Runtime would print them as well
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
TYPES = {
    "tensor(int64)": "int64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
}


def cache_type(session: ort.InferenceSession) -> npt.DTypeLike:
    """Return the type of the caches; some graphs use float16."""
    types = {value.name: value.type for value in session.get_inputs()}
    name = "past.0.pages" if "past.0.pages" in types else "past.0.key"
    return np.float16 if types[name] == "tensor(float16)" else np.float32


def session_options(engine: Engine, num_threads: int) -> ort.SessionOptions:
    """Return the options of a session on the CPU.

    Raises EngineError if the processor lacks a feature that the engine relies on, and
    LibraryMissingError if its graph needs native operators and their library is missing.
    """
    _check_processor(engine)
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads or default_threads()
    if engine.manifest.dialect == NATIVE.name:
        options.register_custom_ops_library(str(_native_library(engine)))
    return options


def _native_library(engine: Engine) -> Path:
    try:
        return loaded_operators().path
    except LibraryMissingError as error:
        raise LibraryMissingError(
            f"engine {engine.path} is written in native operators. {error.problem}",
            "rebuild the engine with --dialect ort",
        ) from error


def load_session(
    engine: Engine,
    options: ort.SessionOptions,
    graph: bytes | None = None,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
) -> ort.InferenceSession:
    """Load the engine's graph, or a variant of it. Raises EngineError."""
    _check_version(engine)
    options.log_severity_level = NOTHING_LOGGED
    if folder := _weights_folder(engine, graph is not None):
        options.add_session_config_entry(WEIGHTS_FOLDER, str(folder))
    try:
        return ort.InferenceSession(
            graph or engine.file(GRAPH_FILE),
            options,
            providers=list(providers),
            enable_fallback=0,  # do not fall back to other providers and print that
        )
    except Exception as error:  # the binding raises many kinds, all about the file
        raise EngineError(
            f"ONNX Runtime {ort.__version__} cannot load {engine.file(GRAPH_FILE)}: "
            f"{str(error).splitlines()[0]}; rebuild the engine, or upgrade onnxruntime"
        ) from error


def _weights_folder(engine: Engine, in_memory: bool) -> Path | None:
    """Return the folder for ONNX Runtime to load the weights from; None: the graph file's own.

    Since 1.25 it rejects a link that leads out of that folder, unless the graph's own link does.
    """
    weights = engine.file(WEIGHTS_FILE).resolve()
    if weights.name == WEIGHTS_FILE:  # the file itself, or a link to one on another disk
        return weights.parent
    return engine.path if in_memory else None  # a link into a download cache


def check_session(engine: Engine, session: ort.InferenceSession) -> None:
    """Raise EngineError if the graph differs from the manifest; additional outputs are allowed."""
    _check_operators(engine, session)
    check_graph(
        engine.file(GRAPH_FILE),
        engine.manifest,
        _values(session.get_inputs()),
        _values(session.get_outputs()),
    )


def _check_operators(engine: Engine, session: ort.InferenceSession) -> None:
    """Reject a graph for another version of the operators, whose weight layout may differ."""
    if engine.manifest.dialect != NATIVE.name:
        return
    version = session.get_modelmeta().custom_metadata_map.get(OPERATORS)
    if version != OPERATORS_VERSION:
        raise _operators_error(f"{engine.file(GRAPH_FILE)}: {OPERATORS}", version)


def _operators_error(place: str, version: str | None) -> EngineError:
    return EngineError(
        f"{place} is {shown(version)}, and this bita-edge has version {OPERATORS_VERSION} of the "
        "native operators: rebuild the engine, or upgrade bita-edge if it was built with a newer "
        "one"
    )


def _values(nodes: Sequence[Any]) -> dict[str, GraphValue]:
    return {
        node.name: GraphValue(
            TYPES.get(node.type, node.type),
            tuple(size if isinstance(size, int) else None for size in node.shape or ()),
        )
        for node in nodes
    }


def step_error(engine: Engine, error: Exception) -> EngineError:
    """Return the error for a step that ONNX Runtime could not execute."""
    return EngineError(
        f"ONNX Runtime {ort.__version__} cannot run a step of engine {engine.path}: "
        f"{str(error).splitlines()[0]}; rebuild the engine"
    )


def min_slots(engine: Engine, session: ort.InferenceSession) -> int:
    """Return the minimum number of cache slots that a step writes. Raises EngineError."""
    text = session.get_modelmeta().custom_metadata_map.get(MIN_SLOTS, "1")
    capacity = engine.manifest.capacity
    if re.fullmatch(r"[1-9][0-9]{0,8}", text) and int(text) <= capacity:
        return int(text)
    raise EngineError(
        f"{engine.file(GRAPH_FILE)}: {MIN_SLOTS} is {shown(text)}, not 1 to {capacity}; rebuild "
        "the engine"
    )


def _check_version(engine: Engine) -> None:
    oldest = engine.manifest.requires.get("onnxruntime", "0")
    if _numbers(ort.__version__) < _numbers(oldest):
        raise EngineError(
            f"engine {engine.path} needs onnxruntime {oldest} or newer; {ort.__version__} is "
            f"installed: pip install 'onnxruntime>={oldest}'"
        )
    if engine.manifest.dialect == NATIVE.name:  # version 1 was not written to manifests
        version = engine.manifest.requires.get(OPERATORS, "1")
        if version != OPERATORS_VERSION:
            raise _operators_error(f"{engine.path}: {OPERATORS}", version)


def _check_processor(engine: Engine) -> None:
    if engine.manifest.requires.get(PROCESSOR) == EXACT_INT8 and not multiplies_int8_exactly():
        raise EngineError(
            f"engine {engine.path} has int8 weights for processors with VNNI; this one has none, "
            f"and would give another text: rebuild it here: make engine "
            f"MODEL={engine.manifest.model} PRECISION=int8"
        )


def _numbers(version: str) -> list[int]:
    """Return the first three numbers of a version: 1.23.2 -> [1, 23, 2]."""
    return [int(number) for number in re.findall(r"\d{1,9}", version)[:3]]


def ort_values(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, ort.OrtValue]:
    """Return OrtValues that share the memory of numpy arrays."""
    return {
        name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        for name, array in arrays.items()
    }
