"""The layout of block weights that the native operators read: tiles of 16 outputs.

A tile holds blocks of 32 inputs, one after another. A block of 4 bits has 4 lines of 64 bytes: byte
4 * o + j of line i holds input 8 * i + j of output o in its low nibble, and input 8 * i + 4 + j in
its high nibble. A block of 8 bits has 8 lines: byte 4 * o + j of line i is input 4 * i + j of
output o.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.export.quantization.blocks import BLOCK_SIZE, Blocks, Float16Array, joined
from bita.tensors import Int8Array, UInt8Array

TILE_ROWS = 16
GATED_ROWS = 32  # rows of the gate, and then of the up projection, in a group
BlockRows = Callable[[int, int], Blocks]  # rows [start, stop) of one linear layer


@dataclass(frozen=True, eq=False)
class Tiles:
    """Packed blocks."""

    values: UInt8Array  # bytes, [tiles, blocks, 256] with 4 bits, [tiles, blocks, 512] with 8 bits
    scales: Float16Array  # [tiles, blocks, 16]
    minima: Float16Array | None  # [tiles, blocks, 16], or None for symmetric blocks


def packed(blocks: Blocks) -> Tiles:
    """Pack rows into tiles; the last tile is padded with zeros."""
    num_tiles = -(-len(blocks) // TILE_ROWS)
    blocks = blocks.padded(num_tiles * TILE_ROWS)
    pack = _pack_int4 if blocks.bits == 4 else _pack_int8
    values = blocks.values.reshape(num_tiles, TILE_ROWS, -1, 32)
    minima = None if blocks.minima is None else _outputs_last(blocks.minima)
    return Tiles(pack(values), _outputs_last(blocks.scales), minima)


def unpacked(tiles: Tiles, num_rows: int) -> Blocks:
    """Unpack the first `num_rows` rows."""
    bits = tiles.values.shape[-1] * 8 // (TILE_ROWS * BLOCK_SIZE)
    unpack = _unpack_int4 if bits == 4 else _unpack_int8
    values = unpack(tiles.values).reshape(len(tiles.values) * TILE_ROWS, -1, 32)
    minima = None if tiles.minima is None else _outputs_first(tiles.minima)
    return Blocks(values, _outputs_first(tiles.scales), minima, bits).rows(slice(num_rows))


def packed_pieces(pieces: Iterable[Blocks]) -> Iterator[Tiles]:
    """Pack rows piece by piece; up to 15 rows of a piece wait for the next one."""
    rest: Blocks | None = None
    for piece in pieces:
        rows = piece if rest is None else joined([rest, piece])
        whole = len(rows) // TILE_ROWS * TILE_ROWS
        if whole:
            yield packed(rows.rows(slice(whole)))
        rest = rows.rows(slice(whole, None))
    if rest is not None and len(rest):
        yield packed(rest)


def in_pieces(rows: BlockRows, num_rows: int, step: int) -> Iterator[Blocks]:
    """Yield all rows of a layer in order, `step` at a time."""
    for start in range(0, num_rows, step):
        yield rows(start, min(start + step, num_rows))


def gated_pieces(gate: BlockRows, up: BlockRows, num_rows: int, step: int) -> Iterator[Blocks]:
    """Yield the rows of two layers in groups: 32 of the gate, then 32 of the up projection.

    The last group is padded with rows of zeros.

    Args:
        gate: Reads rows of the gate.
        up: Reads rows of the up projection.
        num_rows: Rows of each layer.
        step: Rows of each layer to read at a time.
    """
    step = -(-step // GATED_ROWS) * GATED_ROWS
    pairs = zip(in_pieces(gate, num_rows, step), in_pieces(up, num_rows, step), strict=True)
    for pair in pairs:
        size = -(-len(pair[0]) // GATED_ROWS) * GATED_ROWS
        both = joined([rows.padded(size) for rows in pair])
        groups = np.arange(2 * size).reshape(2, -1, GATED_ROWS)
        yield both.rows(groups.swapaxes(0, 1).reshape(-1))


def _pack_int4(values: npt.NDArray[Any]) -> UInt8Array:
    """Pack values [tiles, 16, blocks, 32] to [tiles, blocks, 256]."""
    lines = values.reshape(*values.shape[:3], 4, 2, 4)
    both = lines[..., 0, :] | (lines[..., 1, :] << np.uint8(4))
    return _lines(both)


def _pack_int8(values: npt.NDArray[Any]) -> UInt8Array:
    """Pack values [tiles, 16, blocks, 32] to [tiles, blocks, 512]."""
    return _lines(values.reshape(*values.shape[:3], 8, 4))


def _lines(groups: npt.NDArray[Any]) -> UInt8Array:
    """Arrange groups of 4 bytes, [tiles, 16, blocks, lines, 4], as [tiles, blocks, lines * 64]."""
    whole = np.ascontiguousarray(groups).view(np.uint32)[..., 0]
    lines = np.ascontiguousarray(whole.transpose(0, 2, 3, 1))
    return lines.view(np.uint8).reshape(*lines.shape[:2], -1)


def _unpack_int4(values: npt.NDArray[Any]) -> UInt8Array:
    """Unpack values [tiles, blocks, 256] to [tiles, 16, blocks, 4, 2, 4]."""
    lines = values.reshape(*values.shape[:2], 4, TILE_ROWS, 4).transpose(0, 3, 1, 2, 4)
    return np.stack([lines & np.uint8(15), lines >> np.uint8(4)], axis=-2)


def _unpack_int8(values: npt.NDArray[Any]) -> Int8Array:
    """Unpack values [tiles, blocks, 512] to [tiles, 16, blocks, 8, 4]."""
    lines = values.reshape(*values.shape[:2], 8, TILE_ROWS, 4)
    return np.ascontiguousarray(lines.transpose(0, 3, 1, 2, 4)).view(np.int8)


def _outputs_last(scales: Float16Array) -> Float16Array:
    """Transpose scales [N, blocks] to [tiles, blocks, 16]."""
    tiles = scales.reshape(-1, TILE_ROWS, scales.shape[1])
    return np.ascontiguousarray(tiles.swapaxes(1, 2))


def _outputs_first(scales: Float16Array) -> Float16Array:
    """Transpose scales [tiles, blocks, 16] to [N, blocks]."""
    return scales.swapaxes(1, 2).reshape(-1, scales.shape[1])
