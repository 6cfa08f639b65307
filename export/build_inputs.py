"""A digest of everything an engine is built from, by which a build detects that nothing changed."""

import hashlib
import json
from collections.abc import Mapping
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bita import __version__
from bita.adapter import Adapter
from bita.engine import OPERATORS_VERSION
from bita.export.sources import HUB_FILES, KNOWN_MODELS


def digest_inputs(model: str, adapter: Adapter | None, settings: Mapping[str, Any]) -> str:
    """Return a hex digest of the model's name and files, the adapter, and the settings.

    A file counts by its name, size and modification time, a model of the hub only by its name, so
    that no network is needed. The settings must be JSON values.
    """
    key = {
        "version": [__version__, OPERATORS_VERSION],
        "model": [model, *_model_files(model)],
        "adapter": adapter_digest(adapter) if adapter else None,
        **settings,
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def adapter_digest(adapter: Adapter) -> str:
    """Return a hex digest of an adapter's tensors."""
    digest = hashlib.sha256()
    for piece in adapter.hash_pieces():
        digest.update(piece)
    return digest.hexdigest()


def _model_files(model: str) -> list[list[Any]]:
    if model in KNOWN_MODELS:
        return [[_version_of(KNOWN_MODELS[model].distribution)]]
    path = Path(model).expanduser()
    found = [path]
    if path.is_dir():
        found = [each for each in path.iterdir() if any(fnmatch(each.name, p) for p in HUB_FILES)]
    statuses = [(each.name, each.stat()) for each in sorted(found) if each.is_file()]
    return [[name, status.st_size, status.st_mtime_ns] for name, status in statuses]


def _version_of(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
