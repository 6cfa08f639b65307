"""Checkpoints whose weights are stored in blocks, which an engine can keep as they are."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bita.export.quantization.blocks import Blocks
from bita.tensors import TensorSource


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
