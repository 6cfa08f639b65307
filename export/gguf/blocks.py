"""The block formats of GGUF files as blocks of 32 weights.

Formats with blocks of 32 keep their values and scales unchanged. Q4_K and Q5_K have blocks of 32
inside blocks of 256; their scales and minima are products, which are rounded to float16 here (an
error of 0.06 to 0.08 % of the weights, RMS). Q2_K, Q3_K and Q6_K have blocks of 16, to which blocks
of 32 are fitted.

Each cell gives the relative RMS error for normally distributed weights, and then for weights with a
t distribution of 4 degrees of freedom, quantized by ggml 0.20:

| format | file        | blocks fitted to it    | both       |
| ------ | ----------- | ---------------------- | ---------- |
| Q6_K   | 1.8, 2.3 %  | 8 bits: 0.5, 0.7 %     | 1.9, 2.4 % |
| Q3_K   | 15, 18 %    | 4 bits: 5.3, 5.8 %     | 16, 19 %   |
| Q2_K   | 30, 34 %    | 4 bits: 4.8, 5.6 %     | 30, 35 %   |

Q2_K and Q3_K become 4-bit blocks: 8 bits would take 1.7 times the memory to avoid a small part of
the error.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from bita.export.block_source import BlockType
from bita.export.quantization.blocks import Blocks, Float16Array
from bita.export.quantization.int4 import BLOCK_SIZE
from bita.export.quantization.nearest_blocks import nearest_int4, nearest_int8
from bita.tensors import Float32Array, UInt8Array

Unpack = Callable[[UInt8Array], Blocks]  # from n blocks of the file [n, bytes] to n rows


@dataclass(frozen=True)
class BlockFormat:
    """A type of GGUF tensors, and the function that unpacks its blocks."""

    type: BlockType
    unpack: Unpack


def read_format(raw: UInt8Array, type_name: str) -> Blocks:
    """Unpack rows [N, bytes] of a tensor whose type is a key of BLOCK_FORMATS."""
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    with np.errstate(over="ignore", invalid="ignore"):
        flat = BLOCK_FORMATS[type_name].unpack(raw.reshape(-1, block_bytes))
    shape = len(raw), raw.shape[1] // block_bytes * (block // BLOCK_SIZE)
    minima = None if flat.minima is None else flat.minima.reshape(shape)
    return Blocks(
        flat.values.reshape(*shape, BLOCK_SIZE), flat.scales.reshape(shape), minima, flat.bits
    )


def _q4_0(raw: UInt8Array) -> Blocks:
    return Blocks(_nibbles(raw[:, 2:])[:, None], _halves(raw[:, :2]), None, 4)


def _q4_1(raw: UInt8Array) -> Blocks:
    values = _nibbles(raw[:, 4:])[:, None]
    return Blocks(values, _halves(raw[:, :2]), _halves(raw[:, 2:4]), 4)


def _q5_0(raw: UInt8Array) -> Blocks:
    values = _five_bits(raw[:, 2:6], raw[:, 6:]) - np.uint8(16)
    return Blocks(values.view(np.int8)[:, None], _halves(raw[:, :2]), None, 8)


def _q5_1(raw: UInt8Array) -> Blocks:
    values = _five_bits(raw[:, 4:8], raw[:, 8:]).view(np.int8)
    return Blocks(values[:, None], _halves(raw[:, :2]), _halves(raw[:, 2:4]), 8)


def _q8_0(raw: UInt8Array) -> Blocks:
    values = np.ascontiguousarray(raw[:, 2:]).view(np.int8)
    return Blocks(values[:, None], _halves(raw[:, :2]), None, 8)


def _q4_k(raw: UInt8Array) -> Blocks:
    values = _nibbles(raw[:, 16:].reshape(-1, 4, 32))
    return Blocks(values.reshape(-1, 8, 32), *_products(raw), 4)


def _q5_k(raw: UInt8Array) -> Blocks:
    low = _nibbles(raw[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    places = np.arange(8, dtype=np.uint8)[:, None]
    high = (raw[:, None, 16:48] >> places) & np.uint8(1)
    values = low | (high << np.uint8(4))
    return Blocks(values.view(np.int8), *_products(raw), 8)


def _fit_blocks(kind: GGMLQuantizationType, nearest: Callable[[Float32Array], Blocks]) -> Unpack:
    """Return a function that fits blocks of 32 to the weights of a format with blocks of 16."""

    def unpack(raw: UInt8Array) -> Blocks:
        # dequantize does not accept empty arrays
        weights = dequantize(raw, kind) if len(raw) else np.empty((0, 256), np.float32)
        return nearest(weights)

    return unpack


def _halves(raw: UInt8Array) -> Float16Array:
    return np.ascontiguousarray(raw).view(np.float16)


def _nibbles(raw: UInt8Array) -> UInt8Array:
    """Unpack [..., B / 2] bytes to [..., B] values; low nibbles are the first half of a block."""
    return np.concatenate([raw & np.uint8(15), raw >> np.uint8(4)], axis=-1)


def _five_bits(high: UInt8Array, low: UInt8Array) -> UInt8Array:
    """Return values 0..31 [n, 32] from nibbles and fifth bits [n, 4], the lowest bit first."""
    bits = np.unpackbits(high, axis=-1, bitorder="little")
    return _nibbles(low) | (bits << np.uint8(4))


def _products(raw: UInt8Array) -> tuple[Float16Array, Float16Array]:
    """Return scales and minima [n, 8] of blocks with the header of Q4_K.

    The header has two float16 factors, and eight 6-bit scales and minima in 12 bytes.
    """
    factors = _halves(raw[:, :4]).astype(np.float32)
    first, second, rest = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    low, top = np.uint8(0x3F), np.uint8(0x30)
    scales = [first & low, (rest & np.uint8(15)) | ((first >> np.uint8(2)) & top)]
    minima = [second & low, (rest >> np.uint8(4)) | ((second >> np.uint8(2)) & top)]
    scale = factors[:, :1] * np.concatenate(scales, axis=-1).astype(np.float32)
    minimum = -factors[:, 1:] * np.concatenate(minima, axis=-1).astype(np.float32)
    return scale.astype(np.float16), minimum.astype(np.float16)


_KIND = GGMLQuantizationType
BLOCK_FORMATS = {
    "Q4_0": BlockFormat(BlockType("Q4_0", 4, False), _q4_0),
    "Q4_1": BlockFormat(BlockType("Q4_1", 4, True), _q4_1),
    "Q5_0": BlockFormat(BlockType("Q5_0", 8, False), _q5_0),
    "Q5_1": BlockFormat(BlockType("Q5_1", 8, True), _q5_1),
    "Q8_0": BlockFormat(BlockType("Q8_0", 8, False), _q8_0),
    "Q4_K": BlockFormat(BlockType("Q4_K", 4, True, "scales"), _q4_k),
    "Q5_K": BlockFormat(BlockType("Q5_K", 8, True, "scales"), _q5_k),
    "Q6_K": BlockFormat(
        BlockType("Q6_K", 8, False, "values"), _fit_blocks(_KIND.Q6_K, nearest_int8)
    ),
    "Q3_K": BlockFormat(
        BlockType("Q3_K", 4, True, "values"), _fit_blocks(_KIND.Q3_K, nearest_int4)
    ),
    "Q2_K": BlockFormat(
        BlockType("Q2_K", 4, True, "values"), _fit_blocks(_KIND.Q2_K, nearest_int4)
    ),
}
