"""The key-value cache: one slab, allocated once, whose slots are written in place."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.adapter import Adapter

FloatArray = npt.NDArray[np.floating[Any]]


class Cache:
    """Keys and values of all layers, `[2L, H, C, D]`: layer l's keys at 2l, its values at 2l + 1.

    Slots [0, P) hold the adapter's prefix, the text follows. A step writes its rows behind the
    text; `commit` keeps the accepted ones.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        # zeros are mapped lazily: slots cost memory when they are first written
        self.slab: FloatArray = np.zeros((2 * num_layers, num_kv_heads, capacity, head_dim), dtype)
        self.length = 0  # tokens of text
        self.text_number = 0  # grows with every text that is started
        self._adapter: Adapter | None = None

    @property
    def capacity(self) -> int:
        return self.slab.shape[2]

    @property
    def num_slots_used(self) -> int:
        return self.prefix_length + self.length

    @property
    def prefix_length(self) -> int:
        return self._adapter.prefix_length if self._adapter else 0

    def start(self, adapter: Adapter) -> None:
        """Forget the text, and have this adapter's prefix in the first slots."""
        self.length = 0
        self.text_number += 1
        if adapter is not self._adapter:
            self.slab[0::2, :, : adapter.prefix_length] = adapter.prefix_keys
            self.slab[1::2, :, : adapter.prefix_length] = adapter.prefix_values
            self._adapter = adapter

    def layer(self, index: int) -> tuple[FloatArray, FloatArray]:
        """Views [1, H, C, D] of one layer's keys and values."""
        return self.slab[2 * index][None], self.slab[2 * index + 1][None]

    def commit(self, path: Sequence[int]) -> None:
        """Keep the cache rows of the accepted path and forget the step's other rows.

        path: row indices from the root, increasing. Rows on the spine are in place already;
        others move left. Cost: 2 * L * H * D values for each row that moves.
        """
        start = self.num_slots_used
        moved = [(start + to, start + row) for to, row in enumerate(path) if to != row]
        if moved:
            targets, sources = map(list, zip(*moved, strict=True))
            self.slab[:, :, targets] = self.slab[:, :, sources]
        self.length += len(path)
