"""Check that the logits of a step are meaningful numbers.

If a model's activations overflow, its logits are NaN, and the best token is arbitrary. If only the
squares overflow in the last norm, all logits are zero. An overflow in mask rows can spread to rows
that do not attend to them: their values are weighted with zero, and zero times infinity is NaN.
"""

import math

import numpy as np

from bita.errors import EngineError
from bita.runtime.backends.backend import Step, StepResults
from bita.runtime.backends.step_values import FEW
from bita.tensors import Float32Array


class UnsoundError(EngineError):
    """The logits of a step are not finite; no token was chosen and no row kept."""


def run_soundly(step: Step, position: int) -> None:
    """Run a step whose first row is at `position` of the text, and check its logits.

    Raises UnsoundError if a best logit of an output row is not finite, or if those of the first
    row, which is text, are all zero. The check takes about 5 µs for a few rows.
    """
    step.run()
    check_sound(step, position)


def check_sound(results: StepResults, position: int) -> None:
    """Check the logits of a step that has run; see `run_soundly`."""
    if not _are_finite(results.top_logits):
        raise UnsoundError(_message("not numbers", f"step at position {position}"))
    if not any(results.top_logits[0].tolist()):
        raise UnsoundError(_message("all zero", f"step at position {position}"))


def _are_finite(logits: Float32Array) -> bool:
    """Return whether no number is NaN or infinite.

    Python is faster for few numbers (see `IdCheck`). It checks their sum, which cannot overflow a
    Python float, since the numbers are float32.
    """
    if logits.size > FEW:
        return bool(np.isfinite(logits).all())
    return math.isfinite(sum(map(sum, logits.tolist())))


def check_logits(logits: Float32Array) -> None:
    """Raise EngineError if a row of logits, [V], contains NaN or its maximum is infinite."""
    if not np.isfinite(logits.max()):
        raise EngineError(_message("not numbers", "some of a row"))


def _message(what: str, where: str) -> str:
    return (
        f"the model's logits are {what} ({where}): its activations overflow; build the engine "
        "with PRECISION=fp32, or from other weights"
    )
