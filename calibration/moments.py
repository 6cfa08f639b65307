"""Collect second moments of the inputs of linear layers while a float32 model reads texts."""

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
MEMORY = 4 << 30  # bytes of moments summed in one pass; more layers take more passes


def collect_moments(
    engine: Engine,
    architecture: Architecture,
    texts: Sequence[Sequence[int]],
    directory: Path,
    on_progress: OnCount = ignore_count,
) -> ArrayFiles:
    """Collect the moments of every linear layer of a float32 engine.

    Args:
        engine: Float32 engine.
        architecture: Architecture of its model.
        texts: Token ids of each text.
        directory: Directory of the result; moments already there are reused.
        on_progress: Called with the texts read so far and the total of all passes.

    Raises:
        EngineError: if the engine cannot be used, or a sum is not finite.
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
    """Raise EngineError if the sums over a layer's inputs are not finite."""
    if not is_finite(sums):
        raise EngineError(
            f"the inputs of {label} are so large that the sums of their squares are not finite; "
            "build with --quantizer rtn or with PRECISION=fp32"
        )


def _groups(labels: Sequence[str], architecture: Architecture) -> list[list[str]]:
    """Group labels so that the moments of a group fit in MEMORY; a group has at least one label."""
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
