"""Weights of the native dialect: blocks of 32 inputs with a scale and a minimum, in tiles.

A stand-in that rounds to the nearest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bita.export.onnx.decoder_weights import DecoderWeights
from bita.export.onnx.writer import FLOAT16, INT8, UINT8, GraphWriter
from bita.tensors import Float32Array

BLOCK = 32
TILE = 16


@dataclass(frozen=True)
class NativeWeight:
    """minima: None for symmetric blocks."""

    values: ir.Value
    scales: ir.Value
    minima: ir.Value | None
    bits: int


class NativeWeights:
    def __init__(self, graph: GraphWriter, weights: DecoderWeights, precision: str) -> None:
        self._graph = graph
        self._weights = weights
        self._bits = {"int4": 4, "int8": 8}[precision]

    def weight(self, label: str, names: Sequence[str]) -> NativeWeight:
        return self._write(label, np.concatenate(list(self._weights.chunks(names))), self._bits)

    def gated_weight(self, label: str, gate: str, up: str) -> NativeWeight:
        sides = [np.concatenate(list(self._weights.chunks([name]))) for name in (gate, up)]
        sides = [np.pad(side, ((0, -len(side) % BLOCK), (0, 0))) for side in sides]
        groups = np.stack([side.reshape(-1, BLOCK, side.shape[1]) for side in sides], 1)
        return self._write(label, groups.reshape(-1, sides[0].shape[1]), self._bits)

    def table(self, name: str) -> NativeWeight:
        return self._write(name, np.concatenate(list(self._weights.chunks([name]))), 8)

    def _write(self, label: str, rows: Float32Array, bits: int) -> NativeWeight:
        rows = np.pad(rows, ((0, -len(rows) % TILE), (0, -rows.shape[1] % BLOCK)))
        blocks = rows.reshape(len(rows), -1, BLOCK)
        if bits == 4:
            low, high = blocks.min(-1), blocks.max(-1)
            scales, minima = ((high - low) / 15).astype(np.float16), low.astype(np.float16)
            shifted = blocks - minima[..., None].astype(np.float32)
            top = 15, 0
        else:
            scales, minima, shifted, top = (
                (np.abs(blocks).max(-1) / 127).astype(np.float16),
                None,
                blocks,
                (127, -128),
            )
        wide = scales.astype(np.float32)[..., None]
        values = np.divide(shifted, wide, out=np.zeros_like(shifted), where=wide != 0)
        values = np.clip(np.rint(values), top[1], top[0]).astype(np.int8)
        tiles = values.reshape(-1, TILE, values.shape[1], BLOCK).transpose(0, 2, 1, 3)
        num_tiles, num_blocks = tiles.shape[:2]
        if bits == 4:
            lines = tiles.view(np.uint8).reshape(num_tiles, num_blocks, TILE, 4, 2, 4)
            packed = lines[..., 0, :] | lines[..., 1, :] << 4
        else:
            packed = tiles.reshape(num_tiles, num_blocks, TILE, 8, 4)
        packed = packed.transpose(0, 1, 3, 2, 4).reshape(num_tiles, num_blocks, -1)
        write, kind = self._graph.weight, UINT8 if bits == 4 else INT8
        shape = num_tiles, num_blocks, TILE

        def tiled(array: np.ndarray) -> np.ndarray:
            return array.reshape(num_tiles, TILE, num_blocks).transpose(0, 2, 1)

        return NativeWeight(
            write(f"{label}.values", kind, packed.shape, [packed]),
            write(f"{label}.scales", FLOAT16, shape, [tiled(scales)]),
            None if minima is None else write(f"{label}.minima", FLOAT16, shape, [tiled(minima)]),
            bits,
        )
