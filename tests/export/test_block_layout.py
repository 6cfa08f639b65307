"""Tests of blocks of 32 weights: packing into tiles, ordering, and conversion."""

import numpy as np
import pytest

from bita.errors import ModelError
from bita.export.quantization.blocks import Blocks, check_blocks, dequantized, joined
from bita.export.quantization.tiles import (
    BlockRows,
    gated_pieces,
    in_pieces,
    packed,
    packed_pieces,
    unpacked,
)

RNG = np.random.default_rng(0)
KINDS = [(4, False), (4, True), (8, False), (8, True)]


def random_blocks(num_rows: int, num_blocks: int, bits: int, has_minima: bool) -> Blocks:
    """Return random blocks; 8-bit values with minima have the range of 5 bits."""
    lowest, end = (0, 16) if bits == 4 else (0, 32) if has_minima else (-128, 128)
    values = RNG.integers(lowest, end, (num_rows, num_blocks, 32))
    scales, minima = RNG.normal(size=(2, num_rows, num_blocks)).astype(np.float16)
    dtype = np.uint8 if bits == 4 else np.int8
    return Blocks(values.astype(dtype), scales, minima if has_minima else None, bits)


def assert_same(found: Blocks, expected: Blocks) -> None:
    assert found.bits == expected.bits
    assert found.values.dtype == expected.values.dtype
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.scales, expected.scales)
    assert (found.minima is None) == (expected.minima is None)
    if found.minima is not None and expected.minima is not None:
        np.testing.assert_array_equal(found.minima, expected.minima)


@pytest.mark.parametrize(("bits", "has_minima"), KINDS)
@pytest.mark.parametrize(("num_rows", "num_blocks"), [(1, 1), (15, 2), (16, 3), (17, 1), (50, 5)])
def test_every_byte_has_its_place_in_the_layout(
    num_rows: int, num_blocks: int, bits: int, has_minima: bool
) -> None:
    blocks = random_blocks(num_rows, num_blocks, bits, has_minima)
    tiles = packed(blocks)
    num_tiles = -(-num_rows // 16)
    assert tiles.values.shape == (num_tiles, num_blocks, 64 * bits)
    for row in range(16 * num_tiles):
        tile, output = divmod(row, 16)
        for block in range(num_blocks):
            is_there = row < num_rows
            scale = blocks.scales[row, block] if is_there else 0
            assert tiles.scales[tile, block, output] == scale
            if tiles.minima is not None and blocks.minima is not None:
                minimum = blocks.minima[row, block] if is_there else 0
                assert tiles.minima[tile, block, output] == minimum
            for place in range(32):
                value = blocks.values[row, block, place] if is_there else 0
                assert _value_at(tiles.values[tile, block], bits, output, place) == value
    assert_same(unpacked(tiles, num_rows), blocks)


def _value_at(block: np.ndarray, bits: int, output: int, place: int) -> int:
    """Return the weight for an input of a block by the definition of the layout."""
    if bits == 8:
        line, j = divmod(place, 4)
        return int(block.view(np.int8)[64 * line + 4 * output + j])
    line, rest = divmod(place, 8)
    byte = int(block[64 * line + 4 * output + rest % 4])
    return byte >> 4 if rest >= 4 else byte & 15


def reader(blocks: Blocks) -> BlockRows:
    return lambda start, stop: blocks.rows(slice(start, stop))


@pytest.mark.parametrize("sizes", [(50,), (1, 1, 48), (16, 16), (7, 30, 13), (33, 3)])
def test_pieces_of_any_size_are_packed_alike(sizes: tuple[int, ...]) -> None:
    pieces = [random_blocks(size, 2, 4, True) for size in sizes]
    whole = packed(joined(pieces))
    found = list(packed_pieces(pieces))
    for side in ("values", "scales", "minima"):
        parts = [getattr(tiles, side) for tiles in found]
        np.testing.assert_array_equal(np.concatenate(parts), getattr(whole, side))


@pytest.mark.parametrize("num_rows", [1, 31, 32, 50, 96, 100])
@pytest.mark.parametrize("step", [1, 32, 40, 1000])
def test_gated_rows_alternate_in_groups_of_32(num_rows: int, step: int) -> None:
    gate, up = (random_blocks(num_rows, 1, 8, False) for _ in range(2))
    pieces = list(gated_pieces(reader(gate), reader(up), num_rows, step))
    assert max(map(len, pieces)) <= 2 * max(32, -(-step // 32) * 32)
    whole = joined(pieces)
    num_groups = -(-num_rows // 32)
    assert len(whole) == 64 * num_groups
    for row in range(32 * num_groups):
        group, place = divmod(row, 32)
        for side, blocks in enumerate((gate, up)):
            found = whole.rows(slice(64 * group + 32 * side + place, None)).rows(slice(1))
            expected = blocks.rows(slice(row, row + 1)).padded(1)
            assert_same(found, expected)


def test_plain_pieces_keep_the_order_of_rows() -> None:
    blocks = random_blocks(50, 1, 4, False)
    pieces = list(in_pieces(reader(blocks), 50, 16))
    assert [len(piece) for piece in pieces] == [16, 16, 16, 2]
    assert_same(joined(pieces), blocks)


@pytest.mark.parametrize(("bits", "has_minima"), KINDS)
@pytest.mark.parametrize(("more_bits", "with_minima"), KINDS)
def test_converted_blocks_have_the_same_weights(
    bits: int, has_minima: bool, more_bits: int, with_minima: bool
) -> None:
    blocks = random_blocks(5, 3, bits, has_minima)
    if more_bits < bits or (has_minima and not with_minima):
        with pytest.raises(ValueError, match="cannot become"):
            blocks.converted(more_bits, with_minima)
        return
    found = blocks.converted(more_bits, with_minima)
    assert (found.bits, found.minima is not None) == (more_bits, with_minima)
    assert found.values.dtype == (np.uint8 if more_bits == 4 else np.int8)
    np.testing.assert_array_equal(dequantized(found), dequantized(blocks))


def test_a_minimum_that_float16_cannot_hold_is_named() -> None:
    scales = np.array([[1.0], [9000.0]], np.float16)
    blocks = Blocks(np.zeros((2, 1, 32), np.uint8), scales, None, 4)
    check_blocks("table", blocks)
    with pytest.raises(ModelError, match=r"row 8 of table cannot be quantized: .* in float16"):
        check_blocks("table", blocks.converted(4, True), 7)
