"""Cycles that the native kernels take on a processor, as its scheduling model has them.

benchmarks/cycle_model.py makes them: g++ compiles the kernels, and llvm-mca says how many cycles an
iteration of their loops takes when all data lie in the first cache. No processor is timed for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KernelCycles:
    """Cycles of one core.

    linear: by the kind of a weight ("int4", "int4 with minima", "int8", "int8 with minima"), of a
    block of a tile (32 inputs of 16 outputs) for 1, 2, ... rows at a time. scores: of one dimension
    of 16 keys for 1, 2, ... queries at a time, where the cache is float16. values: of 16 dimensions
    of one slot, likewise. The others are of 16 values, or of a block of 32.
    """

    processor: str
    linear: Mapping[str, tuple[float, ...]]
    scores: tuple[float, ...]
    values: tuple[float, ...]
    weigh: float  # scores to exponentials
    mean: float  # one chunk merged
    turn: float  # rotary embedding, of 16 pairs
    add: float  # residual sum
    squares: float  # of a norm
    rank: float  # logits compared with the best so far
    scale: float  # of a block: normed and quantized
    quantize: float  # of a block
    gate: float  # of a block: activation(gate) * up, quantized

    def block(self, kind: str, num_rows: int) -> float:
        """Cycles of a block of a tile for `num_rows` rows, grouped as in linear_rows.h."""
        cycles = self.linear[kind]
        return sum(cycles[rows - 1] for rows in row_groups(num_rows, len(cycles)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "KernelCycles":
        lists = {key: tuple(data[key]) for key in ("scores", "values")}
        linear = {kind: tuple(cycles) for kind, cycles in data["linear"].items()}
        return cls(**{**data, **lists, "linear": linear})


def row_groups(num_rows: int, most: int) -> list[int]:
    """Rows that are multiplied at a time; a single row at the end would cost as much as two."""
    groups = []
    while num_rows > 0:
        groups.append(min(num_rows, most - 1 if num_rows == most + 1 else most))
        num_rows -= groups[-1]
    return groups
