"""Whether what a step gave are numbers that mean something.

Where a model's activations overflow, its logits are NaN, and the best token is then some token. If
only the squares overflow in the last norm, they are all zero. Garbage that mask rows read can make
a row overflow too which does not see it: it weighs their values with zero, and zero times infinity
is NaN.
"""

import math

import numpy as np

from bita.errors import EngineError
from bita.runtime.backends.backend import Step, StepResults
from bita.runtime.backends.step_values import FEW
from bita.tensors import Float32Array


class UnsoundError(EngineError):
    """What a step gave are not numbers; nothing was chosen or kept of it."""


def run_soundly(step: Step, position: int) -> None:
    """Run a step, whose first row stands at `position` of the text.

    Raises UnsoundError if a best logit of an output row is not finite, or those of the first row,
    which is text, are zero. Cost of the check of few rows: about 5 µs.
    """
    step.run()
    check_sound(step, position)


def check_sound(results: StepResults, position: int) -> None:
    """What `run_soundly` does after the step."""
    if not _are_finite(results.top_logits):
        raise UnsoundError(_message("not numbers", f"step at position {position}"))
    if not any(results.top_logits[0].tolist()):
        raise UnsoundError(_message("all zero", f"step at position {position}"))


def _are_finite(logits: Float32Array) -> bool:
    """Whether no number is NaN or infinite. Python checks few of them, by their sum, which float32
    numbers cannot make overflow there; see `IdCheck`.
    """
    if logits.size > FEW:
        return bool(np.isfinite(logits).all())
    return math.isfinite(sum(map(sum, logits.tolist())))


def check_logits(logits: Float32Array) -> None:
    """Raise EngineError if a row of logits, [V], holds NaN, or infinity as the largest."""
    if not np.isfinite(logits.max()):
        raise EngineError(_message("not numbers", "some of a row"))


def _message(what: str, where: str) -> str:
    return (
        f"the model's logits are {what} ({where}): its activations overflow; build the engine "
        "with PRECISION=fp32, or from other weights"
    )
