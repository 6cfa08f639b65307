"""Scales of quantized weights, as the type that they are stored in has them."""

import numpy as np
import numpy.typing as npt

from bita.tensors import Float32Array

MIN_SCALE = np.float32(2.0**-14)  # float16 has fewer digits below
_FLOAT16_STEP = np.float32(2.0**-24)  # between float16 numbers below MIN_SCALE
_MIN_FLOAT32 = np.float32(np.finfo(np.float32).tiny)  # 1 over a smaller number is infinite


def stored_scales(scales: Float32Array, dtype: npt.DTypeLike = np.float32) -> Float32Array:
    """Scales near to these that `dtype` holds, in float32, so that weights are rounded for them.

    Only 0 becomes 0. Where the type has few digits a scale becomes larger, never smaller: the
    extreme weight of its block would be cut off. What is too large becomes infinite.
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
    """What is wrong with a row of a tensor whose scale `dtype` cannot hold."""
    return (
        f"row {row} of {name} cannot be quantized: its scale is not finite in {np.dtype(dtype)}; "
        "build with PRECISION=fp32, or use another release of the model"
    )


def lost_fault(name: str, dtype: npt.DTypeLike) -> str:
    """What is wrong with a tensor of which nothing is left in `dtype`."""
    return (
        f"the numbers of {name} are so small that all are 0 in {np.dtype(dtype)}; "
        "build with PRECISION=fp32"
    )
