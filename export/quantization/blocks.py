"""Weights in blocks of 32 inputs, each with a scale and, in some kinds, a minimum.

A weight is scale * value + minimum. Blocks without minima are symmetric: a weight is
scale * (value - 8) in 4 bits and scale * value in 8 bits.
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
    """Weights [N, K] as blocks, with K padded to whole blocks; values past K are 0."""

    values: UInt8Array | Int8Array  # [N, blocks, 32], uint8 0..15 with 4 bits, int8 with 8 bits
    scales: Float16Array  # [N, blocks]
    minima: Float16Array | None  # [N, blocks], or None for symmetric blocks
    bits: int  # 4 or 8

    def __len__(self) -> int:
        """Return N, the number of rows."""
        return len(self.values)

    def has_any(self) -> bool:
        """Return whether any weight can be other than 0; scales of 0 have values of 0."""
        has_minima = self.minima is not None and bool(self.minima.any())
        return has_minima or bool(self.values.any())

    def rows(self, index: "slice | npt.NDArray[np.intp]") -> "Blocks":
        """Return the rows of `index`, in its order."""
        minima = None if self.minima is None else self.minima[index]
        return Blocks(self.values[index], self.scales[index], minima, self.bits)

    def padded(self, num_rows: int) -> "Blocks":
        """Append rows with zero scales, minima and values, up to `num_rows` rows."""
        minima = None if self.minima is None else _pad_rows(self.minima, num_rows)
        values, scales = _pad_rows(self.values, num_rows), _pad_rows(self.scales, num_rows)
        return Blocks(values, scales, minima, self.bits)

    def converted(self, bits: int, has_minima: bool) -> "Blocks":
        """Convert to 8 bits, to blocks with minima, or both, without changing the weights.

        A minimum that float16 cannot hold becomes infinite.

        Raises:
            ValueError: if the target has fewer bits, or lacks minima that these blocks have.
        """
        if bits < self.bits or (self.minima is not None and not has_minima):
            raise ValueError(f"blocks of {self.bits} bits cannot become blocks of {bits} bits")
        values, minima = self.values, self.minima
        if bits > self.bits:
            offset = ZERO_POINT if minima is None else 0
            values = (values - np.uint8(offset)).view(np.int8)
        if has_minima and minima is None:
            with np.errstate(over="ignore"):
                minima = self.scales * np.float16(-ZERO_POINT if bits == 4 else 0)
        return Blocks(values, self.scales, minima, bits)


def joined(pieces: Sequence[Blocks]) -> Blocks:
    """Concatenate the rows of pieces of the same kind."""
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
    """Return the weights [N, K] that kernels compute with.

    Args:
        blocks: The blocks.
        width: K; None for all columns of the blocks.
    """
    weights = blocks.values.astype(np.float32)
    if blocks.minima is None and blocks.bits == 4:
        weights -= ZERO_POINT
    weights *= blocks.scales.astype(np.float32)[..., None]
    if blocks.minima is not None:
        weights += blocks.minima.astype(np.float32)[..., None]
    return weights.reshape(len(blocks), weights.shape[1] * BLOCK_SIZE)[:, :width]


def has_finite_scales(blocks: Blocks) -> bool:
    """Return whether all scales and minima are finite, so that all weights are."""
    return bool(_finite_rows(blocks).all())


def check_blocks(name: str, blocks: Blocks, first_row: int = 0) -> None:
    """Check that all scales and minima are finite.

    Args:
        name: The tensor whose rows the blocks are.
        blocks: Rows of the tensor.
        first_row: The index of the first of these rows.

    Raises:
        ModelError: if a scale or minimum is not finite; the error names the first such row.
    """
    finite = _finite_rows(blocks)
    if not finite.all():
        raise ModelError(scale_fault(name, first_row + int(np.argmin(finite)), np.float16))


def in_blocks(rows: Float32Array) -> Float32Array:
    """Split rows [N, K] into [N, blocks, 32], padded with the last weight of each row."""
    missing = -rows.shape[1] % BLOCK_SIZE
    if missing:
        rows = np.pad(rows, ((0, 0), (0, missing)), mode="edge")
    return rows.reshape(len(rows), rows.shape[1] // BLOCK_SIZE, BLOCK_SIZE)


def clear_past(values: npt.NDArray[Any], width: int) -> None:
    """Set the values [N, blocks, 32] past column `width` to 0, in place."""
    if width % BLOCK_SIZE:
        values[:, -1, width % BLOCK_SIZE :] = 0


def _finite_rows(blocks: Blocks) -> BoolArray:
    """Return whether all scales and minima of each row are finite, [N]."""
    finite = np.isfinite(blocks.scales)
    if blocks.minima is not None:
        finite &= np.isfinite(blocks.minima)
    rows: BoolArray = np.all(finite, axis=-1)
    return rows


def _pad_rows(array: npt.NDArray[Any], num_rows: int) -> npt.NDArray[Any]:
    padded = np.zeros((num_rows, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded
