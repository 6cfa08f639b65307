"""Convert numbers to a graph's storage type, and refuse values that the type cannot hold."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.errors import ModelError
from bita.export.finite import is_finite, place_text, sum_of_squares
from bita.export.quantization.scales import lost_fault
from bita.tensors import Float32Array, FloatArray

# Numbers from here on round to infinity in float16, whose largest number is 65504.
BEYOND_FLOAT16 = 65520.0


def narrowed(name: str, values: FloatArray, dtype: npt.DTypeLike, first_row: int = 0) -> FloatArray:
    """Return `values` in a float type.

    Args:
        name: The tensor whose rows `values` are, for errors.
        values: Rows of the tensor.
        dtype: The float type.
        first_row: The index of the first of these rows.

    Raises:
        ModelError: if the type cannot hold a value; the error names the first one.
    """
    dtype, wide = np.dtype(dtype), np.asarray(values, np.float32)
    limit = BEYOND_FLOAT16 if dtype == np.float16 else np.inf
    if not _is_below(wide, limit):
        flat = int(np.argmin(np.abs(wide) < limit))  # false for NaN
        place = np.unravel_index(flat, wide.shape)
        raise ModelError(
            f"{name} is {values[place]:g} {place_text(place, first_row)}, which {dtype} cannot "
            "hold; build with PRECISION=fp32, or use another release of the model"
        )
    return wide.astype(dtype, copy=False)


def narrowed_rows(
    name: str, pieces: Iterable[Float32Array], dtype: npt.DTypeLike
) -> Iterator[FloatArray]:
    """Yield the pieces of a tensor, in order of its rows, converted by `narrowed`.

    Raises:
        ModelError: as `narrowed`, and if all numbers of the tensor are so small that they become 0.
    """
    row, had_any, has_any = 0, False, False
    for piece in pieces:
        stored = narrowed(name, piece, dtype, row)
        yield stored
        row += len(piece)
        had_any = had_any or bool(piece.any())
        has_any = has_any or bool(stored.any())
    if had_any and not has_any:
        raise ModelError(lost_fault(name, dtype))


def _is_below(wide: FloatArray, limit: float) -> bool:
    """Return whether every magnitude is below a limit."""
    # The root of the sum of squares is not less than any magnitude.
    if sum_of_squares(wide.reshape(-1)) < limit * limit:
        return True
    if limit == np.inf:
        return is_finite(wide)
    largest: Any = np.abs(wide).max(initial=0)
    return bool(largest < limit)  # false for NaN
