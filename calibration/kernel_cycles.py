"""Cycles that the native kernels take on a processor according to its scheduling model.

benchmarks/cycle_model.py computes them: g++ compiles the kernels, and llvm-mca reports how many
cycles an iteration of their loops takes when all data are in the L1 cache. No processor is timed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KernelCycles:
    """Cycles of one core, for 16 values unless stated otherwise.

    The entries of a tuple are for 1, 2, ... rows or queries at a time.
    """

    processor: str  # name of the processor, as in benchmarks/kernel_tables.py
    # of a block of a tile (32 inputs, 16 outputs), by the kind of weight: "int4",
    # "int4 with minima", "int8", "int8 with minima"
    linear: Mapping[str, tuple[float, ...]]
    scores: tuple[float, ...]  # one dimension of 16 keys, in a float16 cache
    values: tuple[float, ...]  # 16 dimensions of one slot, in a float16 cache
    weigh: float  # scores to exponentials
    mean: float  # merge one chunk
    turn: float  # rotary embedding of 16 pairs
    add: float  # residual sum
    squares: float  # sum of squares of a norm
    rank: float  # compare logits with the best so far
    scale: float  # normalize and quantize a block of 32
    quantize: float  # quantize a block of 32
    gate: float  # activation(gate) * up of a block of 32, quantized

    def block(self, kind: str, num_rows: int) -> float:
        """Return the cycles of a tile's block for `num_rows` rows, grouped as in linear_rows.h."""
        cycles = self.linear[kind]
        return sum(cycles[rows - 1] for rows in row_groups(num_rows, len(cycles)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "KernelCycles":
        lists = {key: tuple(data[key]) for key in ("scores", "values")}
        linear = {kind: tuple(cycles) for kind, cycles in data["linear"].items()}
        return cls(**{**data, **lists, "linear": linear})


def row_groups(num_rows: int, most: int) -> list[int]:
    """Split rows into groups of at most `most`, avoiding a last group of 1.

    A single row costs as much as two.
    """
    groups = []
    while num_rows > 0:
        groups.append(min(num_rows, most - 1 if num_rows == most + 1 else most))
        num_rows -= groups[-1]
    return groups
