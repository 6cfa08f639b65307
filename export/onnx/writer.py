"""A thin writer of ONNX graphs: operators as calls, weights streamed to the external file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape

from bita.errors import ModelError
from bita.export.onnx.weight_file import WeightFile
from bita.tensors import Float32Array

FLOAT, FLOAT16, INT64, INT32, INT8, BOOL, UINT8 = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.INT64,
    ir.DataType.INT32,
    ir.DataType.INT8,
    ir.DataType.BOOL,
    ir.DataType.UINT8,
)
MICROSOFT = "com.microsoft"
Dim = int | str


class GraphWriter:
    """Collects the nodes, inputs, outputs and weights of a graph.

    Args:
        weights: The external file that gets the weights.
        opsets: The version of the operator set of each domain.
    """

    def __init__(self, weights: WeightFile, opsets: Mapping[str, int]) -> None:
        self.metadata: dict[str, str] = {}  # of the model, for the runtime
        self._tape = Tape()
        self._weights = weights
        self._opsets = dict(opsets)
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}

    def op(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Add a node with one output and return the output."""
        return self._tape.op(op_type, inputs, attributes, domain=domain)

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        num_outputs: int,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs and return them."""
        return self._tape.op_multi_out(
            op_type, inputs, attributes, num_outputs=num_outputs, domain=domain
        )

    def op_into(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[ir.Value | None],
        domain: str = "",
        **attributes: Any,
    ) -> None:
        """Add a node with given outputs; None leaves an optional one out."""
        values = [ir.Value(name="") if value is None else value for value in outputs]
        self._tape.op_multi_out(op_type, inputs, attributes, outputs=values, domain=domain)

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self._inputs.append(value)
        return value

    def output(
        self, name: str, value: ir.Value, dtype: ir.DataType, shape: Sequence[Dim]
    ) -> ir.Value:
        value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(dtype)
        self._outputs.append(value)
        return value

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> ir.Value:
        """Add a small tensor inside the graph; equal tensors are shared.

        Raises:
            ModelError: if a float type cannot hold the value.
        """
        with np.errstate(over="ignore"):
            array = np.asarray(value, dtype)
        if array.dtype.kind == "f" and not _holds(array, np.asarray(value)):
            raise ModelError(
                f"{array.dtype} cannot hold the constant {value!r}; build with PRECISION=fp32"
            )
        key = (array.dtype.str, array.tobytes(), array.shape)
        if key not in self._constants:
            tensor = ir.tensor(array, name=f"constant_{len(self._constants)}")
            self._constants[key] = self._tape.initializer(tensor)
        return self._constants[key]

    def weight(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        pieces: Iterable[npt.NDArray[Any]],
    ) -> ir.Value:
        """Add a weight, and write it to the external file at once."""
        return self._tape.initializer(self._weights.write(name, dtype, shape, pieces))

    def scaled_weight(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        pieces: Iterable[tuple[npt.NDArray[Any], Float32Array]],
    ) -> tuple[ir.Value, Float32Array]:
        """Add a quantized weight, and return it with its scales, which are not written yet.

        `pieces` are rows of the weight with their scales.
        """
        found: list[Float32Array] = []

        def values() -> Iterator[npt.NDArray[Any]]:
            for rows, scales in pieces:
                found.append(scales)
                yield rows

        weight = self.weight(name, dtype, shape, values())
        return weight, np.concatenate(found)

    def save(self, path: Path, name: str) -> None:
        """Write the graph without its weights, which are already written."""
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._tape.nodes,
            initializers=self._tape.initializers,
            opset_imports=self._opsets,
            name=name,
        )
        for index, node in enumerate(graph):
            node.name = f"{node.op_type}_{index}"
        model = ir.Model(graph, ir_version=10, producer_name="bita-edge")
        model.metadata_props.update(self.metadata)
        ir.save(model, path)


def _holds(stored: npt.NDArray[Any], given: npt.NDArray[Any]) -> bool:
    """Return whether all numbers stayed finite, and none became 0."""
    return bool(np.isfinite(stored).all() and ((stored == 0) == (given == 0)).all())
