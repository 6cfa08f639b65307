"""The external data file of a graph, written tensor by tensor and piece by piece."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

ALIGNMENT = 4096  # the page size, since ONNX Runtime maps the file instead of reading it


class WeightFile:
    """Appends tensors to a file, holding only one piece in memory.

    Args:
        path: The file.
        on_write: Called after each piece with its number of bytes, for progress.
    """

    def __init__(self, path: Path, on_write: Callable[[int], None] = lambda _: None) -> None:
        self._path = path
        self._file = path.open("wb")
        self._on_write = on_write

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        pieces: Iterable[npt.NDArray[Any]],
    ) -> ir.ExternalTensor:
        """Append a tensor whose bytes are those of `pieces`, in order.

        Raises:
            ValueError: if the pieces do not add up to the shape.
        """
        offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        self._file.seek(offset)
        length = 0
        for piece in pieces:
            self._file.write(np.ascontiguousarray(piece).data)
            length += piece.nbytes
            self._on_write(piece.nbytes)
        expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if length != expected:
            raise ValueError(f"{name}: wrote {length} bytes for shape {shape}, expected {expected}")
        return ir.ExternalTensor(
            location=self._path.name,
            offset=offset,
            length=length,
            dtype=dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=self._path.parent,
        )
