"""A stand-in for ONNX Runtime that runs graphs of native operators in numpy.

After `use_reference_operators(monkeypatch)`, `ReferenceSession` replaces ONNX Runtime's session, so
that an engine with native operators decodes without the library.
"""

import ctypes
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from reference_layers import BLOCK, TILE, Array, dequantized
from reference_operators import OPERATORS


class NativeGraph:
    """A graph of native operators; with `rounds`, rows have 8 bits between operators."""

    def __init__(self, model: onnx.ModelProto, rounds: bool = False) -> None:
        self.model = model
        self._rounds = rounds
        self.constants = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }

    @classmethod
    def load(cls, path: Path, rounds: bool = False) -> "NativeGraph":
        """Load an engine's model.onnx."""
        return cls(onnx.load(path), rounds)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return every value of the graph; the pages of `inputs` are updated in place."""
        values: dict[str, Array] = {**self.constants, **inputs}
        for node in self.model.graph.node:
            given = [values[name] if name else None for name in node.input]
            attributes = {
                each.name: onnx.helper.get_attribute_value(each) for each in node.attribute
            }
            results = OPERATORS[node.op_type](given, {**attributes, "rounds": self._rounds})
            values |= dict(zip(node.output, results, strict=False))
        return values

    def parts(self, label: str) -> list[Array | None]:
        """Return values, scales, and minima or None."""
        return [self.constants.get(f"{label}.{part}") for part in ("values", "scales", "minima")]

    def bits(self, label: str) -> int:
        return self.constants[f"{label}.values"].shape[-1] * 8 // (TILE * BLOCK)

    def weight(self, label: str, num_out: int, num_in: int) -> Array:
        """Return the weights [num_out, num_in] of a label in float64."""
        return dequantized(self.parts(label), self.bits(label), num_out, num_in)


class ReferenceSession:
    """The part of ONNX Runtime's session that `OrtBackend` uses, for a NativeGraph."""

    def __init__(self, graph: NativeGraph) -> None:
        self._graph = graph

    def get_inputs(self) -> list[Any]:
        return [describe(value) for value in self._graph.model.graph.input]

    def get_outputs(self) -> list[Any]:
        return [describe(value) for value in self._graph.model.graph.output]

    def get_modelmeta(self) -> Any:
        properties = {entry.key: entry.value for entry in self._graph.model.metadata_props}
        return SimpleNamespace(custom_metadata_map=properties)

    def io_binding(self) -> "ReferenceBinding":
        return ReferenceBinding()

    def run_with_iobinding(self, binding: "ReferenceBinding") -> None:
        inputs = {name: array_of(value) for name, value in binding.inputs.items()}
        values = self._graph.run(inputs)
        for name, bound in binding.outputs.items():
            if bound is not None and not name.startswith("present."):
                array_of(bound)[...] = values[name]
        binding.results = [
            SimpleNamespace(numpy=lambda array=values[name]: np.float32(array))
            for name in binding.outputs
        ]


class ReferenceBinding:
    """Values by name; outputs without a value only become results."""

    def __init__(self) -> None:
        self.inputs: dict[str, ort.OrtValue] = {}
        self.outputs: dict[str, ort.OrtValue | None] = {}
        self.results: list[Any] = []

    def bind_ortvalue_input(self, name: str, value: ort.OrtValue) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: ort.OrtValue) -> None:
        self.outputs[name] = value

    def bind_output(self, name: str) -> None:
        self.outputs[name] = None

    def get_outputs(self) -> list[Any]:
        return self.results


def describe(value: onnx.ValueInfoProto) -> Any:
    """Return name, type and shape in the form of ONNX Runtime."""
    kind = value.type.tensor_type
    names = {"float32": "float"}
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    shape = [
        each.dim_value if each.HasField("dim_value") else each.dim_param for each in kind.shape.dim
    ]
    return SimpleNamespace(name=value.name, type=f"tensor({names.get(dtype, dtype)})", shape=shape)


def array_of(value: ort.OrtValue) -> Array:
    """Return a view of a value's memory, which `OrtValue.numpy` might copy."""
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bool)": np.bool_}
    dtype = np.dtype(types.get(value.data_type(), np.int64))
    shape = value.shape()
    size = int(np.prod(shape)) * dtype.itemsize
    if not size:
        return np.empty(shape, dtype)
    memory = (ctypes.c_uint8 * size).from_address(value.data_ptr())
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)


def use_reference_operators(monkeypatch: pytest.MonkeyPatch, rounds: bool = False) -> None:
    """Run engines with native operators by the reference."""
    from bita.engine import GRAPH_FILE
    from bita.runtime.backends import ort_backend

    def load(engine: Any, options: Any, graph: bytes | None = None) -> Any:
        if engine.manifest.dialect != "native":
            return loaded(engine, options, graph)
        path = engine.file(GRAPH_FILE)
        if graph is None:
            return ReferenceSession(NativeGraph.load(path, rounds))
        model = onnx.load_from_string(graph)
        onnx.load_external_data_for_model(model, str(path.parent))
        return ReferenceSession(NativeGraph(model, rounds))

    loaded = ort_backend.load_session
    monkeypatch.setattr(ort_backend, "load_session", load)
    options = ort_backend.session_options

    def session_options(engine: Any, num_threads: int) -> Any:
        is_native = engine.manifest.dialect == "native"
        return ort.SessionOptions() if is_native else options(engine, num_threads)

    monkeypatch.setattr(ort_backend, "session_options", session_options)
