"""Second moments of the inputs of linear layers, from texts that the model reads in float32."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from bita.calibration.probe import Probe, value_names
from bita.engine import Engine
from bita.export.architecture import Architecture
from bita.tensors import Float32Array

INPUT = ".input"
MEMORY = 4 << 30  # bytes of moments summed up at a time; more layers take more passes


class MomentFiles(Mapping[str, Float32Array]):
    """[K, K] arrays by the label of their layer, one file each; read when they are asked for."""

    def __init__(self, directory: Path) -> None:
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

    def save(self, label: str, moments: Float32Array) -> None:
        """Write one; a killed writer leaves none."""
        partial = self._directory / f".{label}.partial"
        with partial.open("wb") as file:
            np.save(file, moments)
        partial.replace(self._path(label))

    def _path(self, label: str) -> Path:
        return self._directory / f"{label}.npy"


def collect_moments(
    engine: Engine,
    architecture: Architecture,
    texts: Sequence[Sequence[int]],
    directory: Path,
    squares_only: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> MomentFiles:
    """The moments of every linear layer of a float32 engine; those in `directory` are kept.

    squares_only: [K], the diagonals alone. on_progress: texts read so far and in all passes.
    Raises EngineError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = MomentFiles(directory)
    labels = [name.removesuffix(INPUT) for name in value_names(engine, INPUT)]
    missing = [label for label in labels if label not in files]
    groups = [missing] if squares_only and missing else _groups(missing, architecture)
    total = len(groups) * len(texts)
    on_progress(0, total)
    for number, group in enumerate(groups):
        probe = Probe(engine, [label + INPUT for label in group])
        sums: dict[str, Float32Array] = {}
        for count, token_ids in enumerate(texts, 1):
            for values in probe.read(token_ids):
                for label in group:
                    rows = values[label + INPUT]
                    product = np.einsum("rk,rk->k", rows, rows) if squares_only else rows.T @ rows
                    sums[label] = sums[label] + product if label in sums else product
            on_progress(number * len(texts) + count, total)
        for label, moments in sums.items():
            files.save(label, moments)
    return files


def _groups(labels: Sequence[str], architecture: Architecture) -> list[list[str]]:
    """Labels whose moments fit the memory together, at least one."""
    groups: list[list[str]] = []
    used = 0
    for label in labels:
        size = 4 * _num_inputs(label, architecture) ** 2
        if not groups or used + size > MEMORY:
            groups.append([])
            used = 0
        groups[-1].append(label)
        used += size
    return groups


def _num_inputs(label: str, architecture: Architecture) -> int:
    if label.endswith(".o_proj"):
        return architecture.num_heads * architecture.head_dim
    if label.endswith(".down_proj"):
        return architecture.intermediate_size
    return architecture.hidden_size
