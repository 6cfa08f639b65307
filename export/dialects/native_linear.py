"""The weights of the native operators: blocks of 32 inputs in tiles of 16 outputs.

A file's own blocks are kept if the precision allows their bits. Weights in floats or in too many
bits are rounded.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from bita.export.block_source import block_type, blocks_errors
from bita.export.dialects.linear import HEAD_LABEL
from bita.export.layer_blocks import LayerBlocks, RoundedLayer, StoredLayer
from bita.export.onnx.writer import FLOAT16, UINT8, GraphWriter
from bita.export.quantization.blocks import Blocks, Float16Array, check_blocks
from bita.export.quantization.gptq import Moments, spread_of
from bita.export.quantization.int4 import BLOCK_SIZE
from bita.export.quantization.tiles import (
    GATED_ROWS,
    TILE_ROWS,
    BlockRows,
    gated_pieces,
    in_pieces,
    packed_pieces,
)
from bita.tensors import CHUNK_BYTES, EMBEDDINGS, HEAD, TensorSource

BITS = {"int4": 4, "int8": 8}


@dataclass(frozen=True)
class BlockWeight:
    """The initializers of concatenated linear layers, or of a table."""

    values: ir.Value
    scales: ir.Value
    minima: ir.Value | None  # None for symmetric blocks
    bits: int  # 4 or 8


@dataclass(frozen=True)
class BlockKind:
    """The properties that all blocks of a weight share."""

    bits: int
    has_minima: bool


class NativeWeights:
    """Reads the weights of linear layers and tables on request, and writes them to the graph.

    It holds a piece of CHUNK_BYTES of each layer, and the scales and minima of a weight, in memory.
    Its methods raise ModelError if blocks cannot hold a weight; the error names tensor and row.

    Args:
        graph: The graph that gets the weights.
        checkpoint: The model.
        precision: "int4" or "int8".
        moments: Second moments of the layers' inputs by label, for which 4-bit weights are rounded;
            a layer without moments is rounded to the nearest values.
    """

    def __init__(
        self,
        graph: GraphWriter,
        checkpoint: TensorSource,
        precision: str,
        moments: Moments | None = None,
    ) -> None:
        self._graph = graph
        self._checkpoint = checkpoint
        self._bits = BITS[precision]
        self._moments: Moments = {} if moments is None else moments
        self._keeps_8_bits = self._bits == 8 or _has_int4_layer(checkpoint)
        self._tables: dict[str, BlockWeight] = {}

    def weight(self, label: str, names: Sequence[str], bits: int | None = None) -> BlockWeight:
        """Write the linear layers `names` with concatenated outputs.

        Args:
            label: Prefix of the initializers' names, and key of the moments.
            names: Weights of the checkpoint that share the input.
            bits: 4 or 8; None to choose by the precision and the file.
        """
        layers, kind = self._layers(label, names, bits)
        sizes = [self._checkpoint.shape(name)[0] for name in names]
        step = self._step(names[0])
        pieces = (
            piece
            for layer, size in zip(layers, sizes, strict=True)
            for piece in in_pieces(_reader(layer, kind), size, step)
        )
        return self._write(label, layers, kind, sum(sizes), pieces)

    def gated_weight(
        self, label: str, gate_name: str, up_name: str, bits: int | None = None
    ) -> BlockWeight:
        """Write gate and up projection in the order of GatedLinear: 2 * 32 * ceil(I / 32) rows."""
        layers, kind = self._layers(label, (gate_name, up_name), bits)
        gate, up = (_reader(layer, kind) for layer in layers)
        num_rows = self._checkpoint.shape(gate_name)[0]
        pieces = gated_pieces(gate, up, num_rows, self._step(gate_name))
        padded = 2 * GATED_ROWS * -(-num_rows // GATED_ROWS)
        return self._write(label, layers, kind, padded, pieces)

    def table(self, name: str) -> BlockWeight:
        """Write the embedding table or a separate output layer, once for all its uses.

        The embedding table has 8 bits, or 4 if the file stores it in 4 and the precision is int4.
        """
        if name not in self._tables:
            label, bits = (HEAD_LABEL, None) if name == HEAD else (name, 8)
            stored = block_type(self._checkpoint, name)
            if name != HEAD and stored is not None:
                bits = max(self._bits, stored.bits)
            self._tables[name] = self.weight(label, [name], bits)
        return self._tables[name]

    def _layers(
        self, label: str, names: Sequence[str], bits: int | None
    ) -> tuple[list[LayerBlocks], BlockKind]:
        """Return the layers as blocks, and the common kind that all blocks are converted to."""
        most = bits or max(self._bits_of(name) for name in names)
        rounded = [name for name in names if not self._is_kept(name, most)]
        spread = spread_of(self._moments, label) if most == 4 and rounded else None
        layers: list[LayerBlocks] = [
            RoundedLayer(self._checkpoint, name, most, spread)
            if name in rounded
            else StoredLayer(self._checkpoint, name)
            for name in names
        ]
        return layers, BlockKind(most, any(layer.has_minima for layer in layers))

    def _bits_of(self, name: str) -> int:
        stored = block_type(self._checkpoint, name)
        keeps = stored is not None and stored.bits == 8 and self._keeps_8_bits
        return 8 if keeps else self._bits

    def _is_kept(self, name: str, bits: int) -> bool:
        """Return whether the file's blocks are used for blocks of `bits`."""
        stored = block_type(self._checkpoint, name)
        return stored is not None and stored.fits(bits)

    def _step(self, name: str) -> int:
        """Return the number of rows to read at a time."""
        row_bytes = 4 * self._checkpoint.shape(name)[1]
        return max(GATED_ROWS, CHUNK_BYTES // row_bytes // GATED_ROWS * GATED_ROWS)

    def _write(
        self,
        label: str,
        layers: Sequence[LayerBlocks],
        kind: BlockKind,
        num_rows: int,
        pieces: Iterable[Blocks],
    ) -> BlockWeight:
        num_blocks = -(-self._checkpoint.shape(layers[0].name)[1] // BLOCK_SIZE)
        shape = -(-num_rows // TILE_ROWS), num_blocks
        scales: list[Float16Array] = []
        minima: list[Float16Array] = []

        def values() -> Iterator[npt.NDArray[Any]]:
            for tiles in packed_pieces(pieces):
                scales.append(tiles.scales)
                if tiles.minima is not None:
                    minima.append(tiles.minima)
                yield tiles.values

        tile_shape = (*shape, TILE_ROWS * BLOCK_SIZE * kind.bits // 8)
        weight = self._graph.weight(f"{label}.values", UINT8, tile_shape, values())
        for layer in layers:
            layer.check_kept()
        return BlockWeight(
            weight,
            self._halves(f"{label}.scales", shape, scales),
            self._halves(f"{label}.minima", shape, minima) if kind.has_minima else None,
            kind.bits,
        )

    def _halves(
        self, name: str, shape: tuple[int, int], pieces: Sequence[Float16Array]
    ) -> ir.Value:
        return self._graph.weight(name, FLOAT16, (*shape, TILE_ROWS), pieces)


def keeps_blocks(checkpoint: TensorSource, precision: str) -> bool:
    """Return whether a precision keeps the blocks of every linear layer, so that none is rounded.

    Embedding tables do not count, since they are never rounded for the model's inputs.
    """
    keeps_8_bits = precision == "int8" or _has_int4_layer(checkpoint)
    stored = [block_type(checkpoint, name) for name in _linear_names(checkpoint)]
    return all(
        found is not None and (found.fits(BITS[precision]) or (found.bits == 8 and keeps_8_bits))
        for found in stored
    )


def kept_text(checkpoint: TensorSource) -> str:
    """Describe for users how exactly an engine keeps the blocks of the file."""
    names = [*_linear_names(checkpoint), EMBEDDINGS]
    errors = blocks_errors(checkpoint, names)
    exact = [name for name, error in errors.items() if not error]
    parts = [f"{', '.join(exact)} bit for bit"] if exact else []
    parts += [f"{name} with an error of {error:.2%}" for name, error in errors.items() if error]
    return f"the file's blocks: {'; '.join(parts)}"


def _linear_names(checkpoint: TensorSource) -> list[str]:
    """Return the weights of linear layers, including a separate output layer."""
    return sorted(n for n in checkpoint.names() if n.endswith("_proj.weight") or n == HEAD)


def _reader(layer: LayerBlocks, kind: BlockKind) -> BlockRows:
    """Return a reader of a layer's rows as blocks of a kind that holds them exactly."""

    def read(start: int, stop: int) -> Blocks:
        blocks = layer.read(start, stop).converted(kind.bits, kind.has_minima)
        check_blocks(layer.name, blocks, start)
        return blocks

    return read


def _has_int4_layer(checkpoint: TensorSource) -> bool:
    """Return whether the file has linear layers of 4-bit blocks."""
    stored = (block_type(checkpoint, n) for n in checkpoint.names() if n.endswith("_proj.weight"))
    return any(found is not None and found.bits == 4 for found in stored)
