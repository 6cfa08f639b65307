"""Weights in blocks of 32 inputs, each with a scale and, in some kinds, a minimum.

weight = scale * value + minimum. Blocks without minima are symmetric: scale * (value - 8) in 4
bits, scale * value in 8.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.errors import ModelError
from bita.export.quantization.int4 import BLOCK_SIZE, ZERO_POINT
from bita.export.quantization.scales import scale_fault
from bita.tensors import BoolArray, Float32Array, Int8Array, UInt8Array

Float16Array = npt.NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Weights [N, K] as blocks, K padded to whole ones; values past K are 0.

    values: [N, blocks, 32], uint8 0..15 in 4 bits, int8 in 8. scales: [N, blocks]; minima: the
    same, or None. bits: 4 or 8.
    """

    values: UInt8Array | Int8Array
    scales: Float16Array
    minima: Float16Array | None
    bits: int

    def __len__(self) -> int:
        """N, the number of rows."""
        return len(self.values)

    def has_any(self) -> bool:
        """Whether any weight can be other than 0; scales of 0 have values of 0."""
        has_minima = self.minima is not None and bool(self.minima.any())
        return has_minima or bool(self.values.any())

    def rows(self, index: "slice | npt.NDArray[np.intp]") -> "Blocks":
        """Some of the rows, in the order of `index`."""
        minima = None if self.minima is None else self.minima[index]
        return Blocks(self.values[index], self.scales[index], minima, self.bits)

    def padded(self, num_rows: int) -> "Blocks":
        """With rows of zeros after the others: zero scales, minima and values."""
        minima = None if self.minima is None else _padded(self.minima, num_rows)
        values, scales = _padded(self.values, num_rows), _padded(self.scales, num_rows)
        return Blocks(values, scales, minima, self.bits)

    def converted(self, bits: int, has_minima: bool) -> "Blocks":
        """Convert to 8 bits, to blocks with minima, or both; the weights stay exactly the same.

        A minimum that float16 cannot hold becomes infinite. Raises ValueError for fewer bits, or
        for no minima where there are some.
        """
        if bits < self.bits or (self.minima is not None and not has_minima):
            raise ValueError(f"blocks of {self.bits} bits do not become blocks of {bits} bits")
        values, minima = self.values, self.minima
        if bits > self.bits:
            offset = ZERO_POINT if minima is None else 0
            values = (values - np.uint8(offset)).view(np.int8)
        if has_minima and minima is None:
            with np.errstate(over="ignore"):
                minima = self.scales * np.float16(-ZERO_POINT if bits == 4 else 0)
        return Blocks(values, self.scales, minima, bits)


def joined(pieces: Sequence[Blocks]) -> Blocks:
    """The rows of pieces of one kind, one piece after the other."""
    if len(pieces) == 1:
        return pieces[0]
    minima = [piece.minima for piece in pieces if piece.minima is not None]
    return Blocks(
        np.concatenate([piece.values for piece in pieces]),
        np.concatenate([piece.scales for piece in pieces]),
        np.concatenate(minima) if minima else None,
        pieces[0].bits,
    )


def dequantized(blocks: Blocks, width: int | None = None) -> Float32Array:
    """The weights [N, K] that kernels compute with. width: K; None: all columns of the blocks."""
    weights = blocks.values.astype(np.float32)
    if blocks.minima is None and blocks.bits == 4:
        weights -= ZERO_POINT
    weights *= blocks.scales.astype(np.float32)[..., None]
    if blocks.minima is not None:
        weights += blocks.minima.astype(np.float32)[..., None]
    return weights.reshape(len(blocks), weights.shape[1] * BLOCK_SIZE)[:, :width]


def has_finite_scales(blocks: Blocks) -> bool:
    """Whether all scales and minima are finite; then all weights are."""
    return bool(_finite_rows(blocks).all())


def check_blocks(name: str, blocks: Blocks, first_row: int = 0) -> None:
    """Raise ModelError that names the first row with a scale or minimum that is not finite.

    name: of the tensor whose rows these are, from `first_row` on.
    """
    finite = _finite_rows(blocks)
    if not finite.all():
        raise ModelError(scale_fault(name, first_row + int(np.argmin(finite)), np.float16))


def in_blocks(rows: Float32Array) -> Float32Array:
    """[N, K] as [N, blocks, 32]; the last weight of a row is repeated after it."""
    missing = -rows.shape[1] % BLOCK_SIZE
    if missing:
        rows = np.pad(rows, ((0, 0), (0, missing)), mode="edge")
    return rows.reshape(len(rows), rows.shape[1] // BLOCK_SIZE, BLOCK_SIZE)


def clear_past(values: npt.NDArray[Any], width: int) -> None:
    """Make the values [N, blocks, 32] past column `width` 0, in place."""
    if width % BLOCK_SIZE:
        values[:, -1, width % BLOCK_SIZE :] = 0


def _finite_rows(blocks: Blocks) -> BoolArray:
    """[N]"""
    finite = np.isfinite(blocks.scales)
    if blocks.minima is not None:
        finite &= np.isfinite(blocks.minima)
    rows: BoolArray = np.all(finite, axis=-1)
    return rows


def _padded(array: npt.NDArray[Any], num_rows: int) -> npt.NDArray[Any]:
    padded = np.zeros((num_rows, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded
