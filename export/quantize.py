"""Weights of linear layers as 4-bit blocks."""

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
BLOCK_SIZE = 32  # of 16, 32, 64, 128: the best quality at full kernel speed on the CPUs measured
ZERO_POINT = 8  # MatMulNBits' default: values 0..15 stand for -8..7


def quantize_int4(
    rows: Float32Array,
) -> tuple[npt.NDArray[np.uint8], Float32Array]:
    """Round-to-nearest, symmetric, one scale per block of 32 weights of a row.

    rows: [N, K]. Returns packed values [N, ceil(K / 32), 16] (low nibble first) and scales
    [N, ceil(K / 32)]. The weight of largest magnitude becomes -8, so weights that come from
    Q4_0 blocks keep their exact values.
    """
    blocks = _blocks(rows)
    scales = extreme_scales(blocks)[..., None]
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    values = np.clip(np.rint(blocks * inverse), -ZERO_POINT, ZERO_POINT - 1) + ZERO_POINT
    return packed_int4(values.astype(np.uint8)), scales[..., 0]


def extreme_scales(blocks: Float32Array) -> Float32Array:
    """The scales [...] at which the weight of largest magnitude of each block [..., 32] is -8."""
    place = np.abs(blocks).argmax(-1, keepdims=True)
    extreme: Float32Array = np.take_along_axis(blocks, place, -1)[..., 0]
    return extreme / np.float32(-ZERO_POINT)


def packed_int4(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two values of 0..15 to a byte, the low nibble first: [..., 32] to [..., 16]."""
    packed: npt.NDArray[np.uint8] = values[..., 0::2] | (values[..., 1::2] << np.uint8(4))
    return packed


def dequantize_int4(
    packed: npt.NDArray[np.uint8], scales: Float32Array, width: int
) -> Float32Array:
    """What the kernel computes with: [N, K] for packed [N, blocks, 16] and scales [N, blocks]."""
    values = np.empty((*packed.shape[:2], BLOCK_SIZE), np.float32)
    values[..., 0::2] = packed & 15
    values[..., 1::2] = packed >> 4
    values -= ZERO_POINT
    return (values * scales[..., None]).reshape(len(packed), -1)[:, :width]


def _blocks(rows: Float32Array) -> Float32Array:
    """[N, K] as [N, ceil(K / 32), 32], with zeros behind."""
    num_rows, width = rows.shape
    if width % BLOCK_SIZE:
        rows = np.pad(rows, ((0, 0), (0, -width % BLOCK_SIZE)))
    return rows.reshape(num_rows, -1, BLOCK_SIZE)
