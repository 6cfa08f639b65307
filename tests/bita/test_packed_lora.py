"""Tests of LoRA in the layout of native operators, with zeros after the last input."""

import numpy as np
import pytest

from bita.lora import SITES, random_lora
from bita.packed_lora import packed_lora, packed_shapes

SIZES = {"qkv": (40, 72), "o": (24, 40), "gate_up": (40, 2 * 70), "down": (70, 40)}
NUM_LAYERS = 3


@pytest.mark.parametrize("rank", [1, 3, 16, 17])
def test_each_number_has_its_place(rank: int) -> None:
    lora = random_lora(SIZES, NUM_LAYERS, rank, scale=1.0, seed=0)
    packed = packed_lora(lora)
    assert list(packed) == [f"lora.{site}.{side}" for site in SITES for side in ("down", "up")]
    for site, (num_in, num_out) in SIZES.items():
        down, up = packed[f"lora.{site}.down"], packed[f"lora.{site}.up"]
        assert (down.shape, up.shape) == packed_shapes(site, NUM_LAYERS, num_in, num_out, rank)
        assert down.dtype == up.dtype == np.float16
        expected = lora[f"lora_{site}_down"].astype(np.float16)
        np.testing.assert_array_equal(down[:, :, :num_in].swapaxes(1, 2), expected)
        assert not down[:, :, num_in:].any()
        expected = lora[f"lora_{site}_up"].astype(np.float16)
        for output in range(num_out):
            place = output if site != "gate_up" else gated_place(output, num_out // 2)
            np.testing.assert_array_equal(up[:, place // 16, :, place % 16], expected[..., output])


def gated_place(output: int, half: int) -> int:
    """Return the row of an output: 32 outputs of gate alternate with 32 of up."""
    side, index = divmod(output, half)
    return index // 32 * 64 + side * 32 + index % 32


def test_all_sites_share_one_block_of_memory() -> None:
    packed = packed_lora(random_lora(SIZES, NUM_LAYERS, 4, scale=1.0, seed=0))
    assert len({id(array.base) for array in packed.values()}) == 1
    assert all(array.flags.c_contiguous for array in packed.values())


def test_shapes_accept_a_symbolic_rank() -> None:
    assert packed_shapes("o", 2, 33, 17, "r") == ((2, "r", 64), (2, 2, "r", 16))
    assert packed_shapes("gate_up", 2, 32, 2 * 33, "r") == ((2, "r", 32), (2, 8, "r", 16))
