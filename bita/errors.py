"""Errors a user can act on: what happened, the value, and the fix, in one message."""

from collections.abc import Sequence

from bita.extras import install_command

MAX_FAULTS = 20  # lines of one message; a broken file may have millions
MAX_MESSAGE = 8000  # characters


class BitaError(Exception):
    """Base of every error that bita-edge raises on purpose. The CLI prints it on one line.

    A message is cut after MAX_MESSAGE characters: names and values in it come from outside.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}...")


class ModelError(BitaError):
    """A checkpoint cannot be found, read or exported."""


class AdapterError(BitaError):
    """An adapter file is broken, or belongs to another model."""


class EngineError(BitaError):
    """An engine directory is broken, or cannot run here."""


class LibraryMissingError(BitaError):
    """The library of native operators is not there, or cannot be loaded.

    problem: a sentence without its full stop. otherwise: what helps too, after "or". The message
    adds what the library's absence costs, and the fix.
    """

    def __init__(self, problem: str, otherwise: str = "") -> None:
        self.problem = problem
        super().__init__(
            f"{problem}. Without it decoding takes 2 to 3.3 times as long with ONNX Runtime's "
            "own operators. Install a C++ compiler, then run `make native` or install bita-edge "
            f"again{', or ' if otherwise else ''}{otherwise}"
        )


class TuningError(BitaError):
    """A tuning run cannot start or go on: its settings, its data or its checkpoint."""


class TreeError(BitaError):
    """A tree description is not a tree, or does not fit the engine."""


class PromptError(BitaError):
    """A prompt, a message list or a generation option is not usable."""


class PromptTooLongError(PromptError):
    """A prompt does not fit the engine's cache."""


class MissingExtraError(BitaError):
    """A feature needs packages that are not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        command = install_command(extra)
        super().__init__(f"{feature} needs packages that are not installed: {command}")


def raise_faults(error: type[BitaError], subject: str, faults: Sequence[str]) -> None:
    """Raise one error that lists the `faults` of `subject`; do nothing if there are none.

    After MAX_FAULTS it only says how many more there are.
    """
    if len(faults) == 1:
        raise error(f"{subject}: {faults[0]}")
    if faults:
        lines = "".join(f"\n  - {fault}" for fault in faults[:MAX_FAULTS])
        more = len(faults) - MAX_FAULTS
        rest = f"\n  and {more} more" if more > 0 else ""
        raise error(f"{subject}: {len(faults)} faults:{lines}{rest}")
