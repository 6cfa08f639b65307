"""Which adapter an engine gets: the one given, or the one that belongs to the model's name."""

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from bita.adapter import Adapter
from bita.errors import AdapterError
from bita.export.model_name import adapter_path
from bita.export.sources import KNOWN_MODELS

UNTUNED = "none"  # instead of a file


@dataclass(frozen=True)
class AdapterChoice:
    """adapter: None for an untuned one. source: where it is from. is_given: by the user."""

    adapter: Adapter | None
    source: str
    is_given: bool

    def explained(self, error: AdapterError) -> AdapterError:
        """The error, with why this adapter was taken where nobody asked for it."""
        if self.is_given:
            return error
        return AdapterError(
            f"the adapter {self.source} has the model's name, so it was taken; give --adapter FILE "
            f"for another one, or --adapter {UNTUNED} for an untuned engine: {error}"
        )


def choose_adapter(given: str | None, model: str) -> AdapterChoice:
    """given: a file, UNTUNED, or None. With None it is `adapter_path` in the current directory,
    else the one that ships with the package for a known model, else an untuned one.

    Raises AdapterError.
    """
    if given == UNTUNED:
        return AdapterChoice(None, "", True)
    if given is not None:
        return AdapterChoice(Adapter.load(given), given, True)
    own = adapter_path(model)
    if own.exists():
        return _taken(own, str(own))
    if model in KNOWN_MODELS:
        shipped = files("bita") / adapter_path(model).as_posix()
        if shipped.is_file():
            with as_file(shipped) as path:
                return _taken(path, f"{shipped.name}, which ships with bita-edge")
    return AdapterChoice(None, "", False)


def _taken(path: Path, source: str) -> AdapterChoice:
    try:
        return AdapterChoice(Adapter.load(path), source, False)
    except AdapterError as error:
        raise AdapterChoice(None, source, False).explained(error) from error
