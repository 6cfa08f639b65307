"""How large each input of a linear layer is, from texts that the model reads in float32."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bita.calibration.array_files import ArrayFiles
from bita.calibration.moments import INPUT, check_sums
from bita.calibration.probe import Probe, value_names
from bita.engine import Engine
from bita.progress import OnCount, ignore_count
from bita.tensors import Float32Array


def collect_ranges(
    engine: Engine,
    texts: Sequence[Sequence[int]],
    directory: Path,
    on_progress: OnCount = ignore_count,
) -> ArrayFiles:
    """Largest magnitudes [in] of every linear layer of a float32 engine, by label.

    Those in `directory` are kept. on_progress: texts read so far and in all. Raises EngineError.
    """
    return _collect(
        engine, texts, directory, lambda rows: np.abs(rows).max(0), np.maximum, on_progress
    )


def collect_squares(
    engine: Engine,
    texts: Sequence[Sequence[int]],
    directory: Path,
    on_progress: OnCount = ignore_count,
) -> ArrayFiles:
    """The same with sums of squares."""
    return _collect(
        engine, texts, directory, lambda rows: np.square(rows).sum(0), np.add, on_progress
    )


def _collect(
    engine: Engine,
    texts: Sequence[Sequence[int]],
    directory: Path,
    reduced: Callable[[Float32Array], Float32Array],
    joined: Callable[[Float32Array, Float32Array], Float32Array],
    on_progress: OnCount,
) -> ArrayFiles:
    """reduced: [rows, in] to [in]; joined: two of these to one."""
    files = ArrayFiles(directory)
    labels = [name.removesuffix(INPUT) for name in value_names(engine, INPUT)]
    labels = [label for label in labels if label not in files]
    total = len(texts) if labels else 0
    on_progress(0, total)
    if not labels:
        return files
    probe = Probe(engine, [label + INPUT for label in labels])
    found: dict[str, Float32Array] = {}
    for count, token_ids in enumerate(texts, 1):
        for values in probe.read(token_ids):
            for label in labels:
                with np.errstate(over="ignore"):
                    piece = reduced(values[label + INPUT])
                found[label] = joined(found[label], piece) if label in found else piece
        on_progress(count, total)
    for label, array in found.items():
        check_sums(label, array)
        files.save(label, array)
    return files
