"""Choose an engine's adapter: the one given, or the one named after the model."""

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from bita.adapter import Adapter
from bita.errors import AdapterError
from bita.export.model_name import adapter_path
from bita.export.sources import KNOWN_MODELS

UNTUNED = "none"  # given instead of a file


@dataclass(frozen=True)
class AdapterChoice:
    """The adapter of a build, and how it was chosen."""

    adapter: Adapter | None  # None for an untuned engine
    source: str  # where it comes from, for messages; "" for an untuned engine
    is_given: bool  # whether the user gave it

    def explained(self, error: AdapterError) -> AdapterError:
        """Return the error, extended by the reason for this adapter unless the user gave it."""
        if self.is_given:
            return error
        return AdapterError(
            f"the adapter {self.source} was used because it has the model's name; give --adapter "
            f"FILE for another one, or --adapter {UNTUNED} for an untuned engine: {error}"
        )


def choose_adapter(given: str | None, model: str) -> AdapterChoice:
    """Return the adapter that a build of `model` uses.

    Args:
        given: A file, or UNTUNED. None takes `adapter_path` in the current directory if it exists,
            otherwise the adapter that the package ships for a known model, otherwise none.
        model: The model as the user names it.

    Raises:
        AdapterError: if the adapter cannot be loaded.
    """
    if given == UNTUNED:
        return AdapterChoice(None, "", True)
    if given is not None:
        return AdapterChoice(Adapter.load(given), given, True)
    own = adapter_path(model)
    if own.exists():
        return _load_named(own, str(own))
    if model in KNOWN_MODELS:
        shipped = files("bita") / adapter_path(model).as_posix()
        if shipped.is_file():
            with as_file(shipped) as path:
                return _load_named(path, f"{shipped.name}, which ships with bita-edge")
    return AdapterChoice(None, "", False)


def _load_named(path: Path, source: str) -> AdapterChoice:
    try:
        return AdapterChoice(Adapter.load(path), source, False)
    except AdapterError as error:
        raise AdapterChoice(None, source, False).explained(error) from error
