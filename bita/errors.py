"""Errors that a user can act on: each message gives the problem, the value and the fix."""

from collections.abc import Sequence

from bita.extras import install_command

MAX_FAULTS = 20  # faults listed in one message; a broken file may have millions
MAX_MESSAGE = 8000  # characters


class BitaError(Exception):
    """Base class of every error that bita-edge raises on purpose. The CLI prints it on one line.

    Messages are cut after 8000 characters, because names and values in them come from outside.
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
    """The library of native operators is missing, or cannot be loaded."""

    def __init__(self, problem: str, otherwise: str = "") -> None:
        """Complete the message with the cost of the missing library, and the fix.

        Args:
            problem: A sentence without its full stop.
            otherwise: Another fix, which follows "or"; "" for none.
        """
        self.problem = problem
        super().__init__(
            f"{problem}. Without it decoding takes 2 to 3.3 times as long with ONNX Runtime's "
            "own operators. Install a C++ compiler, then run `make native` or install bita-edge "
            f"again{', or ' if otherwise else ''}{otherwise}"
        )


class TuningError(BitaError):
    """A tuning run cannot start or continue with its settings, data or checkpoint."""


class TreeError(BitaError):
    """A tree description is not a tree, or does not fit the engine."""


class PromptError(BitaError):
    """A prompt, a list of messages or a generation option is not usable."""


class PromptTooLongError(PromptError):
    """A prompt does not fit the engine's cache."""


class MissingExtraError(BitaError):
    """A feature needs packages that are not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        command = install_command(extra)
        super().__init__(f"{feature} needs packages that are not installed: {command}")


def raise_faults(error: type[BitaError], subject: str, faults: Sequence[str]) -> None:
    """Raise one error that lists the `faults` of `subject`; do nothing if there are none.

    After MAX_FAULTS faults, the message only gives the number of further ones.
    """
    if len(faults) == 1:
        raise error(f"{subject}: {faults[0]}")
    if faults:
        lines = "".join(f"\n  - {fault}" for fault in faults[:MAX_FAULTS])
        more = len(faults) - MAX_FAULTS
        rest = f"\n  and {more} more" if more > 0 else ""
        raise error(f"{subject}: {len(faults)} faults:{lines}{rest}")
