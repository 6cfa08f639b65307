"""The check for finite numbers that every weight read from a model's files passes.

A NaN or an infinity in a weight makes every logit NaN, and every answer token 0.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from bita.errors import ModelError
from bita.tensors import Float32Array


def check_finite(owner: str, name: str, values: Float32Array, first_row: int = 0) -> None:
    """Check that all values are finite. Takes one pass over the values in the usual case.

    Args:
        owner: The model, for the message.
        name: The tensor whose rows `values` are.
        values: Rows of the tensor.
        first_row: The index of the first of these rows.

    Raises:
        ModelError: if a value is not finite; the error names the first one.
    """
    if not is_finite(values):
        place = np.unravel_index(int(np.argmin(np.isfinite(values))), values.shape)
        raise ModelError(
            f"{owner}: {name} is {values[place]} {place_text(place, first_row)}; every weight must "
            "be a finite number. Download the file again, or use another release of the model"
        )


def is_finite(values: npt.NDArray[Any]) -> bool:
    """Return whether no value is NaN or infinite."""
    flat = values.reshape(-1)
    if flat.dtype == np.float32 and np.isfinite(sum_of_squares(flat)):
        return True
    return bool(np.isfinite(flat).all())


def sum_of_squares(flat: Float32Array) -> float:
    """Return the sum of squares in float32.

    It is finite only if all values are, and no value is larger than its square root.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.dot(flat, flat))


def place_text(place: tuple[Any, ...], first_row: int = 0) -> str:
    """Describe the place of a value: its row and column, or its index in a vector."""
    if not place:
        return "(a single number)"
    row = first_row + int(place[0])
    if len(place) == 1:
        return f"at index {row}"
    return f"at row {row}, column {', '.join(str(int(index)) for index in place[1:])}"
