"""Weights in 8 bits, with a scale for each row."""

from collections.abc import Iterable

import numpy as np

from bita.export.quantization.scales import stored_scales
from bita.tensors import Float32Array, Int8Array

Pieces = Iterable[Float32Array]  # [n, in] each
MAX_INT8 = 127  # values are -127 to 127


def quantized(rows: Pieces, size: tuple[int, int]) -> tuple[Int8Array, Float32Array]:
    """Round rows to the nearest symmetric values.

    Args:
        rows: The weights in pieces [n, in].
        size: (out, in).

    Returns:
        Values [in, out] and scales [out].
    """
    values, scales = np.empty(size[::-1], np.int8), np.empty(size[0], np.float32)
    start = 0
    for piece in rows:
        end = start + len(piece)
        rounded, scales[start:end] = rounded_rows(piece)
        values[:, start:end] = rounded.T
        start = end
    return values, scales


def rounded_rows(rows: Float32Array) -> tuple[Int8Array, Float32Array]:
    """Round rows [n, in] to 8 bits; return them with scales [n], 0 for a row of zeros."""
    scales = stored_scales(np.abs(rows).max(-1) / np.float32(MAX_INT8))
    inverse = np.zeros(len(rows), np.float32)
    np.divide(1.0, scales, out=inverse, where=scales != 0)
    return np.rint(rows * inverse[:, None]).astype(np.int8), scales
