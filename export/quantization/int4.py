"""Weights of linear layers as 4-bit blocks."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bita.export.quantization.scales import MIN_SCALE, stored_scales
from bita.tensors import Float32Array, UInt8Array

BLOCK_SIZE = 32  # the best quality of 16, 32, 64 and 128 at full kernel speed on measured CPUs
ZERO_POINT = 8  # MatMulNBits' default: values 0..15 represent -8..7


@dataclass(frozen=True)
class Int4Grid:
    """The spacing of 4-bit weights."""

    block_size: int = BLOCK_SIZE  # B, the weights of a row that share a scale
    # whether a scale may be negative or zero, so that the largest weight becomes -8 whatever its
    # sign; TensorRT accepts only positive scales
    negative_scales: bool = True
    scale_type: npt.DTypeLike = np.float32  # of stored scales, for which weights are rounded

    def extreme_scales(self, blocks: Float32Array) -> Float32Array:
        """Return the scales for which the weight of largest magnitude of a block is -8 or 7.

        Blocks [..., B] have scales [...].
        """
        place = np.abs(blocks).argmax(-1, keepdims=True)
        extreme: Float32Array = np.take_along_axis(blocks, place, -1)[..., 0]
        if self.negative_scales:
            return self.stored(extreme / np.float32(-ZERO_POINT))
        most = np.where(extreme < 0, np.float32(ZERO_POINT), np.float32(ZERO_POINT - 1))
        scales: Float32Array = np.where(extreme == 0, MIN_SCALE, np.abs(extreme) / most)
        return self.stored(scales)

    def stored(self, scales: Float32Array) -> Float32Array:
        """Return scales close to these that can be stored."""
        return stored_scales(scales, self.scale_type)


MATMULNBITS = Int4Grid()


def quantize_int4(
    rows: Float32Array, grid: Int4Grid = MATMULNBITS
) -> tuple[UInt8Array, Float32Array]:
    """Round rows [N, K] to the nearest symmetric values, with a scale for each block of B weights.

    With MatMulNBits' grid the weight of largest magnitude becomes -8, so weights that come from
    Q4_0 blocks keep their exact values.

    Returns:
        Packed values [N, ceil(K / B), B / 2], low nibble first, and scales [N, ceil(K / B)].
    """
    blocks = _split_blocks(rows, grid.block_size)
    scales = grid.extreme_scales(blocks)[..., None]
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    values = np.clip(np.rint(blocks * inverse), -ZERO_POINT, ZERO_POINT - 1) + ZERO_POINT
    return packed_int4(values.astype(np.uint8)), scales[..., 0]


def packed_int4(values: UInt8Array) -> UInt8Array:
    """Pack two values 0..15 into a byte, the low nibble first: [..., B] to [..., B / 2]."""
    packed: UInt8Array = values[..., 0::2] | (values[..., 1::2] << np.uint8(4))
    return packed


def dequantize_int4(packed: UInt8Array, scales: Float32Array, width: int) -> Float32Array:
    """Return the weights [N, K] that kernels compute with.

    `packed` is [N, blocks, B / 2], `scales` is [N, blocks], and `width` is K.
    """
    values = np.empty((*packed.shape[:2], 2 * packed.shape[2]), np.float32)
    values[..., 0::2] = packed & 15
    values[..., 1::2] = packed >> 4
    values -= ZERO_POINT
    return (values * scales[..., None]).reshape(len(packed), -1)[:, :width]


def _split_blocks(rows: Float32Array, block_size: int) -> Float32Array:
    """Split rows [N, K] into [N, ceil(K / B), B], padded with zeros."""
    num_rows, width = rows.shape
    if width % block_size:
        rows = np.pad(rows, ((0, 0), (0, -width % block_size)))
    return rows.reshape(num_rows, -1, block_size)
