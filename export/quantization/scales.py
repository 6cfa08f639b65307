"""Scales of quantized weights, rounded to the type that they are stored in."""

import numpy as np
import numpy.typing as npt

from bita.tensors import Float32Array

MIN_SCALE = np.float32(2.0**-14)  # smaller float16 numbers have fewer digits
_FLOAT16_STEP = np.float32(2.0**-24)  # between float16 numbers below MIN_SCALE
_MIN_FLOAT32 = np.float32(np.finfo(np.float32).tiny)  # 1 over smaller numbers may be infinite


def stored_scales(scales: Float32Array, dtype: npt.DTypeLike = np.float32) -> Float32Array:
    """Return scales in float32 that are close to these and that `dtype` can hold.

    Only 0 becomes 0. Where the type has few digits, a scale never becomes smaller, which would clip
    the extreme weight of its block. Scales beyond the type become infinite.
    """
    half = np.dtype(dtype) == np.float16
    with np.errstate(over="ignore"):
        near = scales.astype(np.float16).astype(np.float32) if half else scales
    least = MIN_SCALE if half else _MIN_FLOAT32
    small = np.abs(scales) < least
    if not small.any():
        return near
    step = _FLOAT16_STEP if half else _MIN_FLOAT32
    up = np.copysign(np.ceil(np.abs(scales) / step) * step, scales)
    stored: Float32Array = np.where(small, up, near)
    return stored


def scale_fault(name: str, row: int, dtype: npt.DTypeLike) -> str:
    """Return the error message for a row of a tensor whose scale `dtype` cannot hold."""
    return (
        f"row {row} of {name} cannot be quantized: its scale is not finite in {np.dtype(dtype)}; "
        "build with PRECISION=fp32, or use another release of the model"
    )


def lost_fault(name: str, dtype: npt.DTypeLike) -> str:
    """Return the error message for a tensor whose numbers all become 0 in `dtype`."""
    return (
        f"the numbers of {name} are so small that all are 0 in {np.dtype(dtype)}; "
        "build with PRECISION=fp32"
    )
