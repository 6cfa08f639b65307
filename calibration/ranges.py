"""Collect the size of each input of linear layers while a float32 model reads texts."""

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
    """Collect the largest input magnitudes [in] of every linear layer of a float32 engine.

    Args:
        engine: Float32 engine.
        texts: Token ids of each text.
        directory: Directory of the result; layers already there are reused.
        on_progress: Called with the texts read so far and the total.

    Returns:
        The arrays by the label of their layer.

    Raises:
        EngineError: if the engine cannot be used, or a value is not finite.
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
    """Collect the sums of squares [in] of the inputs, otherwise as `collect_ranges`."""
    return _collect(
        engine, texts, directory, lambda rows: np.square(rows).sum(0), np.add, on_progress
    )


def _collect(
    engine: Engine,
    texts: Sequence[Sequence[int]],
    directory: Path,
    reduce: Callable[[Float32Array], Float32Array],
    join: Callable[[Float32Array, Float32Array], Float32Array],
    on_progress: OnCount,
) -> ArrayFiles:
    """Reduce the inputs of each piece with `reduce` ([rows, in] to [in]), and these with `join`."""
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
                    piece = reduce(values[label + INPUT])
                found[label] = join(found[label], piece) if label in found else piece
        on_progress(count, total)
    for label, array in found.items():
        check_sums(label, array)
        files.save(label, array)
    return files
