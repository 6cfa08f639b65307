"""A linear layer of a checkpoint as blocks of 32, a few rows at a time.

The blocks are those of the file, or the weights are rounded to blocks.
"""

from typing import Protocol

from bita.errors import ModelError
from bita.export.block_source import block_type, stored_blocks
from bita.export.quantization.blocks import Blocks
from bita.export.quantization.gptq import ErrorSpread, quantize_blocks_for
from bita.export.quantization.nearest_blocks import nearest_int4, nearest_int8
from bita.export.quantization.scales import lost_fault
from bita.tensors import Float32Array, TensorSource


class LayerBlocks(Protocol):
    """A layer, or a table, as blocks of one kind."""

    name: str
    bits: int
    has_minima: bool

    def read(self, start: int, stop: int) -> Blocks:
        """Read rows [start, stop); rounding may yield scales that are not finite."""

    def check_kept(self) -> None:
        """Raise ModelError if all weights that were read have become 0."""


class StoredLayer:
    """A layer that is stored in blocks, which are kept."""

    def __init__(self, source: TensorSource, name: str) -> None:
        stored = block_type(source, name)
        assert stored is not None
        self.name, self.bits, self.has_minima = name, stored.bits, stored.has_minima
        self._source = source

    def read(self, start: int, stop: int) -> Blocks:
        blocks = stored_blocks(self._source, self.name, start, stop)
        assert blocks is not None
        return blocks

    def check_kept(self) -> None:
        """Do nothing: the file's numbers are not rounded."""


class RoundedLayer:
    """A layer whose weights are rounded to 4 bits with minima, or to symmetric 8 bits.

    Args:
        source: The checkpoint.
        name: The tensor.
        bits: 4 or 8.
        spread: Statistics of the inputs for which 4-bit weights are rounded (GPTQ); None rounds to
            the nearest values.
    """

    def __init__(
        self, source: TensorSource, name: str, bits: int, spread: ErrorSpread | None = None
    ) -> None:
        self.name, self.bits, self.has_minima = name, bits, bits == 4
        self._source = source
        self._spread = spread
        self._had_any = self._has_any = False

    def read(self, start: int, stop: int) -> Blocks:
        rows = self._source.read(self.name, start, stop)
        blocks = self._round(rows)
        self._had_any = self._had_any or bool(rows.any())
        self._has_any = self._has_any or blocks.has_any()
        return blocks

    def check_kept(self) -> None:
        if self._had_any and not self._has_any:
            raise ModelError(lost_fault(self.name, "float16"))

    def _round(self, rows: Float32Array) -> Blocks:
        if self.bits == 8:
            return nearest_int8(rows)
        return quantize_blocks_for(rows, self._spread) if self._spread else nearest_int4(rows)
