"""How the weights of a calibrated engine are rounded, and what that needs to know of its texts."""

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
    """Texts that the float32 engine reads, so that the inputs of its linear layers are seen."""

    reference: Engine
    architecture: Architecture
    texts: Sequence[Sequence[int]]  # ids of each
    folder: Path  # keeps what an earlier run collected
    on_progress: OnCount  # texts read, total


@dataclass(frozen=True)
class Rounding:
    """One way to round the weights of linear layers."""

    name: str  # as the report of an engine's error has it
    collect: Callable[[Reading], Seen] | None = None  # raises EngineError; None: it needs no texts


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


NONE = Rounding("none")  # weights in floats
NEAREST = Rounding("rtn")
GPTQ = Rounding("gptq", _collect_moments)
SMOOTHED = Rounding("smoothed", _collect_squares)  # int8, by the size of its inputs
KEPT = Rounding("file")  # blocks as the file has them
RANGES = Rounding("ranges", _collect_ranges)  # 8 bits of explicit Q/DQ, which need them to scale
ROUNDINGS = {"gptq": GPTQ, "rtn": NEAREST}  # what a user may ask for


def rounding_of(options: BuildOptions, quantizer: str, checkpoint: TensorSource) -> Rounding:
    """The rounding for a precision and dialect. quantizer: one of ROUNDINGS, as the user asked.

    The native dialect keeps blocks that the checkpoint has.
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
