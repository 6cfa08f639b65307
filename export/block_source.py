"""Checkpoints whose weights are stored in blocks, which an engine can keep as they are."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bita.export.finite import sum_of_squares
from bita.export.quantization.blocks import Blocks, dequantized
from bita.tensors import TensorSource

SAMPLED_ROWS = 256  # of a tensor, for the error of its blocks


@dataclass(frozen=True)
class BlockType:
    """What the blocks of a tensor become.

    name: of the file's format. bits, has_minima: of the blocks that are read. rounded: what of
    them is not exact: "" for nothing, "scales" for scales and minima in float16, or "values" for
    all, where blocks are fitted to the weights.
    """

    name: str
    bits: int
    has_minima: bool
    rounded: str = ""

    def fits(self, bits: int) -> bool:
        """Whether blocks of `bits` hold the weights as well as the file's own do."""
        return self.bits == bits or (self.bits < bits and self.rounded != "values")


@runtime_checkable
class BlockSource(Protocol):
    """A TensorSource that can give some of its tensors as blocks."""

    def block_type(self, name: str) -> BlockType | None:
        """How a matrix is stored, from the header only; None if it is not stored in blocks."""

    def read_blocks(self, name: str, start: int = 0, stop: int | None = None) -> Blocks | None:
        """Rows [start, stop) as blocks; only they are read. None where `block_type` is None."""


def block_type(source: TensorSource, name: str) -> BlockType | None:
    """How a tensor is stored; None if it is not stored in blocks."""
    return source.block_type(name) if isinstance(source, BlockSource) else None


def stored_blocks(source: TensorSource, name: str, start: int, stop: int) -> Blocks | None:
    """Rows [start, stop) of a tensor as its file's blocks; None if it is not stored in blocks.

    Raises ModelError if a weight is not finite, or float16 cannot hold a scale or minimum.
    """
    return source.read_blocks(name, start, stop) if isinstance(source, BlockSource) else None


def blocks_errors(source: TensorSource, names: Iterable[str]) -> dict[str, float]:
    """How much the blocks of tensors differ from the file's weights, by the file's formats.

    Relative root mean squares; 0 for formats that are kept exactly. Tensors that are not stored in
    blocks are left out. Reads at most SAMPLED_ROWS rows of each tensor.
    """
    squares: dict[str, list[float]] = {}  # of the errors, of the weights
    for name in names:
        stored = block_type(source, name)
        if stored is None:
            continue
        sums = squares.setdefault(stored.name, [0.0, 0.0])
        if stored.rounded:
            error, size = _squares(source, name)
            sums[0] += error
            sums[1] += size
    return {name: (error / (size or 1.0)) ** 0.5 for name, (error, size) in squares.items()}


def _squares(source: TensorSource, name: str) -> tuple[float, float]:
    """The sums of the squares of the errors of a tensor's first blocks, and of its weights."""
    stop = min(SAMPLED_ROWS, source.shape(name)[0])
    blocks = stored_blocks(source, name, 0, stop)
    assert blocks is not None
    weights = source.read(name, 0, stop)
    error = dequantized(blocks) - weights
    return sum_of_squares(error.reshape(-1)), sum_of_squares(weights.reshape(-1))
