"""Second moments of the inputs of linear layers, from texts that the model reads in float32."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bita.calibration.array_files import ArrayFiles
from bita.calibration.probe import Probe, value_names
from bita.engine import Engine
from bita.errors import EngineError
from bita.export.architecture import Architecture
from bita.export.finite import is_finite
from bita.progress import OnCount, ignore_count
from bita.tensors import Float32Array

INPUT = ".input"
MEMORY = 4 << 30  # bytes of moments summed up at a time; more layers take more passes


def collect_moments(
    engine: Engine,
    architecture: Architecture,
    texts: Sequence[Sequence[int]],
    directory: Path,
    on_progress: OnCount = ignore_count,
) -> ArrayFiles:
    """The moments of every linear layer of a float32 engine; those in `directory` are kept.

    on_progress: texts read so far and in all passes. Raises EngineError.
    """
    files = ArrayFiles(directory)
    labels = [name.removesuffix(INPUT) for name in value_names(engine, INPUT)]
    groups = _groups([label for label in labels if label not in files], architecture)
    total = len(groups) * len(texts)
    on_progress(0, total)
    for number, group in enumerate(groups):
        probe = Probe(engine, [label + INPUT for label in group])
        sums: dict[str, Float32Array] = {}
        for count, token_ids in enumerate(texts, 1):
            for values in probe.read(token_ids):
                for label in group:
                    rows = values[label + INPUT]
                    with np.errstate(over="ignore", invalid="ignore"):
                        product = rows.T @ rows
                    sums[label] = sums[label] + product if label in sums else product
            on_progress(number * len(texts) + count, total)
        for label, moments in sums.items():
            check_sums(label, moments)
            files.save(label, moments)
    return files


def check_sums(label: str, sums: Float32Array) -> None:
    """Raise EngineError if what was summed up of a layer's inputs is not finite."""
    if not is_finite(sums):
        raise EngineError(
            f"the inputs of {label} are so large that the sums of their squares are not finite; "
            "build with --quantizer rtn, or with PRECISION=fp32"
        )


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
