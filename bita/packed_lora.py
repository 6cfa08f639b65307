"""LoRA in the layout of native operators: float16, one array of all layers per side of a site.

down [L, r, 32 * blocks] has a row for each rank, padded with zeros after the last input.
up [L, tiles, r, 16] has tiles of 16 outputs, padded with zeros after the last one. In site gate_up
the outputs are interleaved as in the weights, 32 of the gate and then 32 of up. Threads thus read
both arrays sequentially.
"""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bita.lora import SITES
from bita.tensors import Float32Array

BLOCK, TILE, GROUP = 32, 16, 32  # inputs per block; outputs per tile; outputs per gate_up group
Float16Array = npt.NDArray[np.float16]
Rank = TypeVar("Rank", int, str)


def packed_shapes(
    site: str, num_layers: int, num_in: int, num_out: int, rank: Rank
) -> tuple[tuple[int | Rank, ...], tuple[int | Rank, ...]]:
    """Return the shapes of down and up; `rank` is a number, or a letter for any rank."""
    outputs = _round_up(num_out, TILE) if site != "gate_up" else 2 * _round_up(num_out // 2, GROUP)
    return (
        (num_layers, rank, _round_up(num_in, BLOCK)),
        (num_layers, outputs // TILE, rank, TILE),
    )


def packed_lora(tensors: Mapping[str, Float32Array]) -> dict[str, Float16Array]:
    """Pack both sides of all sites, by the names of the graph's inputs, lora.{site}.{side}.

    The values of `tensors` (by LORA_TENSORS) must fit float16. The result is in one piece of
    memory, for which numpy requests huge pages if it has 4 MB or more.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for site in SITES:
        num_layers, num_in, rank = tensors[f"lora_{site}_down"].shape
        num_out = tensors[f"lora_{site}_up"].shape[2]
        names = f"lora.{site}.down", f"lora.{site}.up"
        of_site = packed_shapes(site, num_layers, num_in, num_out, rank)
        shapes |= dict(zip(names, of_site, strict=True))
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    memory = np.zeros(sum(sizes), np.float16)
    pieces = np.split(memory, np.cumsum(sizes)[:-1])
    packed = {
        name: piece.reshape(shape)
        for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }
    for site in SITES:
        down, up = tensors[f"lora_{site}_down"], tensors[f"lora_{site}_up"]
        packed[f"lora.{site}.down"][..., : down.shape[1]] = down.swapaxes(1, 2)
        parts = [up] if site != "gate_up" else np.split(up, 2, axis=2)
        _fill_tiles(packed[f"lora.{site}.up"], parts)
    return packed


def _fill_tiles(tiles: Float16Array, parts: list[Float32Array]) -> None:
    """Write outputs [L, r, n] into tiles; the groups of two parts are interleaved."""
    width = TILE if len(parts) == 1 else GROUP
    num_layers, _, rank, _ = tiles.shape
    groups = tiles.reshape(num_layers, -1, len(parts), width // TILE, rank, TILE)
    for index, part in enumerate(parts):
        padded = np.zeros((num_layers, rank, _round_up(part.shape[2], width)), np.float16)
        padded[..., : part.shape[2]] = part
        split = padded.reshape(num_layers, rank, -1, width // TILE, TILE)
        groups[:, :, index] = split.transpose(0, 2, 3, 1, 4)


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
