"""Choose how the weights of a calibrated engine are rounded, and collect what that needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bita.calibration.moments import collect_moments
from bita.calibration.ranges import collect_ranges, collect_squares
from bita.dialect_spec import DIALECTS, FLOAT_PRECISIONS, NATIVE
from bita.engine import Engine
from bita.export.architecture import Architecture
from bita.export.build import BuildOptions
from bita.export.dialects.native_linear import keeps_blocks
from bita.export.dialects.step_graph import Seen
from bita.progress import OnCount
from bita.tensors import TensorSource


@dataclass(frozen=True)
class Reading:
    """Texts for the float32 engine to read while the inputs of its linear layers are collected."""

    reference: Engine  # in float32
    architecture: Architecture
    texts: Sequence[Sequence[int]]  # token ids of each
    folder: Path  # results, including those of an earlier run
    on_progress: OnCount  # called with (texts read, total)


@dataclass(frozen=True)
class Rounding:
    """A way to round the weights of linear layers."""

    name: str  # as written in an engine's quality report
    collect: Callable[[Reading], Seen] | None = None  # raises EngineError; None: needs no texts


def _collect_moments(reading: Reading) -> Seen:
    moments = collect_moments(
        reading.reference,
        reading.architecture,
        reading.texts,
        reading.folder / "moments",
        reading.on_progress,
    )
    return Seen(moments=moments)


def _collect_squares(reading: Reading) -> Seen:
    folder = reading.folder / "squares"
    squares = collect_squares(reading.reference, reading.texts, folder, reading.on_progress)
    return Seen(squares=squares)


def _collect_ranges(reading: Reading) -> Seen:
    folder = reading.folder / "ranges"
    ranges = collect_ranges(reading.reference, reading.texts, folder, reading.on_progress)
    return Seen(ranges=ranges)


NONE = Rounding("none")  # float weights
NEAREST = Rounding("rtn")
GPTQ = Rounding("gptq", _collect_moments)
SMOOTHED = Rounding("smoothed", _collect_squares)  # int8, smoothed by the size of a layer's inputs
KEPT = Rounding("file")  # blocks as they are in the checkpoint
RANGES = Rounding("ranges", _collect_ranges)  # 8 bits with explicit Q/DQ, whose scales need ranges
ROUNDINGS = {"gptq": GPTQ, "rtn": NEAREST}  # choices of a user


def rounding_of(options: BuildOptions, quantizer: str, checkpoint: TensorSource) -> Rounding:
    """Return the rounding for a precision and dialect.

    The native dialect keeps the blocks of the checkpoint, if it has any.

    Args:
        options: Options of the build.
        quantizer: One of ROUNDINGS, the user's choice.
        checkpoint: Tensors of the model.
    """
    if options.precision in FLOAT_PRECISIONS:
        return NONE
    spec, asked = DIALECTS[options.dialect], ROUNDINGS[quantizer]
    if spec is NATIVE and keeps_blocks(checkpoint, options.precision):
        return KEPT
    if spec.needs_ranges(options.precision):
        return RANGES
    if options.precision == "int8" and asked is GPTQ:
        return SMOOTHED if spec.needs_smoothing(options.precision) else NEAREST
    return asked
