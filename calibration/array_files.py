"""A mapping of names to arrays, stored in one file each."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bita.files import replace_file
from bita.tensors import Float32Array


class ArrayFiles(Mapping[str, Float32Array]):
    """Arrays in a directory by the label of their layer; each is read on access."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def __getitem__(self, label: str) -> Float32Array:
        path = self._path(label)
        if not path.is_file():
            raise KeyError(label)
        array: Float32Array = np.load(path)
        return array

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in sorted(self._directory.glob("*.npy")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, label: object) -> bool:
        return self._path(str(label)).is_file()

    def save(self, label: str, array: Float32Array) -> None:
        """Write one array atomically, so that a killed writer leaves no partial file."""
        with replace_file(self._path(label)) as partial, partial.open("wb") as file:
            np.save(file, array)

    def _path(self, label: str) -> Path:
        return self._directory / f"{label}.npy"
