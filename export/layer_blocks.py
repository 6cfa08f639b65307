"""One linear layer of a checkpoint as blocks of 32, a few rows at a time.

Either the blocks of its file, or its weights rounded to blocks.
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
        """Rows [start, stop); scales of rounded weights may not be finite (`check_blocks`)."""

    def check_kept(self) -> None:
        """Raise ModelError if nothing was left of the rows that were read."""


class StoredLayer:
    """The blocks of the layer's file, which has some."""

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
        """The file's numbers are what they are."""


class RoundedLayer:
    """The layer's weights rounded to 4 bits with minima, or to symmetric 8 bits.

    spread: of the inputs that 4 bits are rounded for; None for the nearest values.
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
        blocks = self._rounded(rows)
        self._had_any = self._had_any or bool(rows.any())
        self._has_any = self._has_any or blocks.has_any()
        return blocks

    def check_kept(self) -> None:
        if self._had_any and not self._has_any:
            raise ModelError(lost_fault(self.name, "float16"))

    def _rounded(self, rows: Float32Array) -> Blocks:
        if self.bits == 8:
            return nearest_int8(rows)
        return quantize_blocks_for(rows, self._spread) if self._spread else nearest_int4(rows)
