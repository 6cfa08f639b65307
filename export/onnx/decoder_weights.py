"""The weights of a decoder as initializers of its graph, whatever dialect uses them."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from bita.errors import ModelError
from bita.export.architecture import Architecture
from bita.export.onnx.storage import narrowed, narrowed_rows
from bita.export.onnx.writer import FLOAT, INT8, GraphWriter
from bita.export.quantization.int8 import rounded_rows
from bita.export.quantization.scales import scale_fault
from bita.export.rope import Rope
from bita.tensors import Float32Array, FloatArray, TensorSource, row_chunks


class DecoderWeights:
    """Reads weights on request, and writes them to the graph at once.

    Its methods raise ModelError if a type cannot hold a value; the error names tensor and place.

    Args:
        graph: The graph.
        checkpoint: The model.
        architecture: The features of the decoder.
        storage: The type of tables and matrices.
        compute: The type of biases and of cos and sin.
    """

    def __init__(
        self,
        graph: GraphWriter,
        checkpoint: TensorSource,
        architecture: Architecture,
        storage: ir.DataType,
        compute: ir.DataType = FLOAT,
    ) -> None:
        self._graph = graph
        self._checkpoint = checkpoint
        self._architecture = architecture
        self._storage = storage
        self.compute = compute
        self._tables: dict[str, ir.Value] = {}
        self._rope_tables: dict[tuple[Rope, int], tuple[ir.Value, ir.Value]] = {}

    def table(self, name: str) -> ir.Value:
        """Write a weight in its own layout, once for all its uses."""
        if name not in self._tables:
            shape, pieces = self._checkpoint.shape(name), self._stored_rows(name)
            self._tables[name] = self._graph.weight(name, self._storage, shape, pieces)
        return self._tables[name]

    def int8_table(self, name: str) -> tuple[ir.Value, ir.Value]:
        """Write a weight in its own layout in 8 bits, and the scale of each of its rows."""
        shape = self._checkpoint.shape(name)
        pieces = (rounded_rows(rows) for rows in self.chunks([name]))
        values, scales = self._graph.scaled_weight(f"{name}_int8", INT8, shape, pieces)
        return values, self.scales(name, [name], scales[:, None], FLOAT)

    def matrix(self, label: str, names: Sequence[str]) -> ir.Value:
        """Write MatMul's second operand [in, out] for the concatenated linear layers `names`."""
        num_out, num_in = self.shape(names)
        matrix = np.empty((num_in, num_out), self._storage.numpy())
        start = 0
        for name in names:
            for rows in self._stored_rows(name):
                matrix[:, start : start + len(rows)] = rows.T
                start += len(rows)
        return self._graph.weight(f"{label}.weight", self._storage, matrix.shape, [matrix])

    def scales(
        self, label: str, names: Sequence[str], scales: FloatArray, dtype: ir.DataType
    ) -> ir.Value:
        """Write the scales of concatenated quantized layers, unchanged, [out, ...] or flat."""
        with np.errstate(over="ignore"):
            stored = scales.astype(dtype.numpy(), copy=False)
        finite = np.isfinite(stored).reshape(self.shape(names)[0], -1).all(-1)
        if not finite.all():
            name, row = self._row_of(names, int(np.argmin(finite)))
            raise ModelError(scale_fault(name, row, dtype.numpy()))
        return self._graph.weight(f"{label}.scales", dtype, stored.shape, [stored])

    def derived(self, name: str, values: FloatArray, dtype: ir.DataType) -> ir.Value:
        """Write a small tensor that is computed from others."""
        stored = narrowed(name, values, dtype.numpy())
        return self._graph.weight(name, dtype, stored.shape, [stored])

    def as_compute(self, value: ir.Value) -> ir.Value:
        """Convert a matrix, or rows of a table, to the compute type."""
        if self._storage == self.compute:
            return value
        return self._graph.op("Cast", value, to=self.compute)

    def norm(self, name: str, scale: float = 1.0) -> ir.Value:
        """Write a norm's weight in float32, including its offset and a constant factor."""
        weight = (self._checkpoint.read(name) + self._architecture.norm_offset) * scale
        return self.derived(name, weight, FLOAT)

    def bias(self, label: str, names: Sequence[str]) -> ir.Value | None:
        """Write the biases [out] of concatenated linear layers; return None if they have none."""
        biases = [name.removesuffix("weight") + "bias" for name in names]
        present = self._checkpoint.names()
        if not any(bias in present for bias in biases):
            return None
        dtype = self.compute.numpy()
        parts = [
            narrowed(bias, self._checkpoint.read(bias), dtype)
            if bias in present
            else np.zeros(self._checkpoint.shape(name)[0], dtype)
            for name, bias in zip(names, biases, strict=True)
        ]
        bias = np.concatenate(parts)
        return self._graph.weight(f"{label}.bias", self.compute, bias.shape, [bias])

    def rope(self, rope: Rope, capacity: int) -> tuple[ir.Value, ir.Value]:
        """Write cos and sin of all positions, each [capacity, rotary_dim / 2]."""
        key = rope, capacity
        if key not in self._rope_tables:
            number = len(self._rope_tables)
            cos, sin = rope.tables(capacity)
            self._rope_tables[key] = (
                self.derived(f"rope.{number}.cos", cos, self.compute),
                self.derived(f"rope.{number}.sin", sin, self.compute),
            )
        return self._rope_tables[key]

    def shape(self, names: Sequence[str]) -> tuple[int, int]:
        """Return the shape (out, in) of concatenated linear layers."""
        shapes = [self._checkpoint.shape(name) for name in names]
        return sum(shape[0] for shape in shapes), shapes[0][1]

    def chunks(self, names: Sequence[str]) -> Iterator[Float32Array]:
        """Yield the rows of linear layers, one layer after another."""
        for name in names:
            yield from row_chunks(self._checkpoint, name)

    def _row_of(self, names: Sequence[str], output: int) -> tuple[str, int]:
        """Return the layer, and the row of its weight, of an output of concatenated layers."""
        for name in names:
            size = self._checkpoint.shape(name)[0]
            if output < size:
                return name, output
            output -= size
        raise IndexError(output)

    def _stored_rows(self, name: str) -> Iterator[FloatArray]:
        pieces = row_chunks(self._checkpoint, name)
        return narrowed_rows(name, pieces, self._storage.numpy())
