"""Read values inside an engine's graph while it processes texts."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from bita.engine import GRAPH_FILE, Engine
from bita.engine_adapter import read_adapter
from bita.errors import EngineError
from bita.export.finite import is_finite
from bita.runtime.backends.layout import prefill_layout
from bita.runtime.backends.ort_backend import BoundStep, OrtBackend
from bita.runtime.decoding.prefill import Prefill
from bita.runtime.decoding.soundness import UnsoundError
from bita.tensors import Float32Array

PIECE = 128  # rows read at a time, which bounds the memory of the probed values
Values = dict[str, Float32Array]


class Probe:
    """Reads texts with an engine's graph and returns values inside it.

    Args:
        engine: Engine to run.
        names: Names of the values, as the export gives them.
        num_threads: Threads of a step; 0 for one per physical core.

    Raises:
        EngineError: if the graph has no value of that name or cannot be loaded.
    """

    def __init__(self, engine: Engine, names: Sequence[str], num_threads: int = 0) -> None:
        self._engine = engine
        self._backend = OrtBackend(engine, num_threads, _graph_with_outputs(engine, names))
        self._adapter = read_adapter(engine)
        self._names = names
        self._steps: dict[bool, BoundStep] = {}  # the last step of a whole piece, and of another
        self._prefill = Prefill(self._backend.cache, PIECE, self._bind)
        room = engine.manifest.capacity - self._adapter.prefix_length
        self.max_tokens = room + 1 - self._backend.min_slots  # the last piece may have one row

    def read(self, token_ids: Sequence[int]) -> Iterator[Values]:
        """Yield the named values, each [rows, width], and "logits" [rows, V], piece by piece.

        The next piece overwrites the arrays. A text longer than the cache is truncated.

        Raises:
            EngineError: if a value is not finite; names the first one.
        """
        self._backend.cache.start(self._adapter)
        pieces = self._prefill.pieces(token_ids[: self.max_tokens])
        while (step := self._next_step(pieces)) is not None:
            values = self._values(step)
            for name, value in values.items():
                self._check(name, value)
            yield values

    def _next_step(self, pieces: Iterator[BoundStep]) -> BoundStep | None:
        try:
            return next(pieces, None)
        except UnsoundError:
            for step in self._steps.values():  # the values of earlier steps were finite
                for name, value in self._values(step).items():
                    self._check(name, value)
            raise

    def _values(self, step: BoundStep) -> Values:
        assert step.logits is not None
        values = {name: _rows(value) for name, value in step.probed().items()}
        return {**values, "logits": step.logits}

    def _bind(self, num_tokens: int) -> BoundStep:
        """Bind a step in which every token gives logits."""
        layout = replace(prefill_layout(num_tokens, 0, 1), output_rows=np.arange(num_tokens))
        step = self._backend.bind(layout, self._adapter, True, self._names)
        self._steps[num_tokens == PIECE] = step
        return step

    def _check(self, name: str, value: Float32Array) -> None:
        if not is_finite(value):
            precision = self._engine.manifest.precision
            raise EngineError(
                f"{name} of {self._engine.path} is not finite while reading a text: {precision} "
                "cannot represent the numbers of this model, or its weights are damaged. Download "
                "the model again, or choose another PRECISION"
            )


def value_names(engine: Engine, *suffixes: str) -> list[str]:
    """Return the values of an engine's graph whose names have these suffixes, in graph order."""
    graph = _read_graph(engine).graph
    names = (value.name or "" for node in graph for value in node.outputs)
    return [name for name in names if name.endswith(suffixes)]


def _graph_with_outputs(engine: Engine, names: Sequence[str]) -> bytes:
    model = _read_graph(engine)
    values = {value.name: value for node in model.graph for value in node.outputs}
    missing = [name for name in names if name not in values]
    if missing:
        raise EngineError(f"engine {engine.path} has no value {missing[0]!r}; rebuild it")
    for name in names:
        if values[name].type is None:  # the export sets the type of values that are not float32
            values[name].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(values[name])
    serialized: bytes = ir.to_proto(model).SerializeToString()
    return serialized


def _read_graph(engine: Engine) -> ir.Model:
    path = engine.file(GRAPH_FILE)
    try:
        return ir.load(path)
    except Exception as error:  # exceptions of protobuf and onnx_ir, all caused by the file
        raise EngineError(f"{path} cannot be read ({error}); rebuild the engine") from error


def _rows(value: Float32Array) -> Float32Array:
    return value.reshape(-1, value.shape[-1])
