"""Checkpoints whose weights are stored in blocks that an engine can keep unchanged."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bita.export.finite import sum_of_squares
from bita.export.quantization.blocks import Blocks, dequantized
from bita.tensors import TensorSource

SAMPLED_ROWS = 256  # rows of a tensor that are read to measure the error of its blocks


@dataclass(frozen=True)
class BlockType:
    """The kind of blocks as which a stored tensor is read."""

    name: str  # the file's format, such as "Q4_K"
    bits: int  # of the blocks that are read
    has_minima: bool  # whether the blocks that are read have minima
    # the inexact part: "" for none, "scales" for scales and minima rounded to float16, "values" for
    # all numbers, where blocks are fitted to the weights
    rounded: str = ""

    def fits(self, bits: int) -> bool:
        """Return whether blocks of `bits` hold the weights as well as the file's own blocks."""
        return self.bits == bits or (self.bits < bits and self.rounded != "values")


@runtime_checkable
class BlockSource(Protocol):
    """A TensorSource that can return some of its tensors as blocks."""

    def block_type(self, name: str) -> BlockType | None:
        """Return the block type of a matrix, from the header alone; None if it has no blocks."""

    def read_blocks(self, name: str, start: int = 0, stop: int | None = None) -> Blocks | None:
        """Read rows [start, stop) as blocks; return None if the tensor has no blocks."""


def block_type(source: TensorSource, name: str) -> BlockType | None:
    """Return the block type of a tensor; None if it is not stored in blocks."""
    return source.block_type(name) if isinstance(source, BlockSource) else None


def stored_blocks(source: TensorSource, name: str, start: int, stop: int) -> Blocks | None:
    """Read rows [start, stop) of a tensor as blocks; return None if it is not stored in blocks.

    Raises:
        ModelError: if a weight is not finite, or float16 cannot hold a scale or minimum.
    """
    return source.read_blocks(name, start, stop) if isinstance(source, BlockSource) else None


def blocks_errors(source: TensorSource, names: Iterable[str]) -> dict[str, float]:
    """Return the error of the blocks compared with the file's weights, for each format of the file.

    Errors are relative root mean squares, 0 for formats that are kept exactly. Tensors that are not
    stored in blocks are skipped. At most SAMPLED_ROWS rows of each tensor are read.
    """
    squares: dict[str, list[float]] = {}  # sums of squared errors and of squared weights
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
    """Return the sum of squared errors of a tensor's first blocks, and of its squared weights."""
    stop = min(SAMPLED_ROWS, source.shape(name)[0])
    blocks = stored_blocks(source, name, 0, stop)
    assert blocks is not None
    weights = source.read(name, 0, stop)
    error = dequantized(blocks) - weights
    return sum_of_squares(error.reshape(-1)), sum_of_squares(weights.reshape(-1))
