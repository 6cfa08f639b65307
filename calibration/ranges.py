"""Largest magnitudes of the inputs of linear layers, from texts that the model reads in float32."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bita.calibration.array_files import ArrayFiles
from bita.calibration.moments import INPUT
from bita.calibration.probe import Probe, value_names
from bita.engine import Engine
from bita.tensors import Float32Array


def collect_ranges(
    engine: Engine,
    texts: Sequence[Sequence[int]],
    directory: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ArrayFiles:
    """Of every linear layer of a float32 engine, [in] by label; those in `directory` are kept.

    on_progress: texts read so far and in all. Raises EngineError.
    """
    files = ArrayFiles(directory)
    labels = [name.removesuffix(INPUT) for name in value_names(engine, INPUT)]
    labels = [label for label in labels if label not in files]
    total = len(texts) if labels else 0
    on_progress(0, total)
    if not labels:
        return files
    probe = Probe(engine, [label + INPUT for label in labels])
    largest: dict[str, Float32Array] = {}
    for count, token_ids in enumerate(texts, 1):
        for values in probe.read(token_ids):
            for label in labels:
                rows = np.abs(values[label + INPUT]).max(0)
                largest[label] = np.maximum(largest[label], rows) if label in largest else rows
        on_progress(count, total)
    for label, rows in largest.items():
        files.save(label, rows)
    return files
