"""How much of the cache a step looks at, where its graph lets the runtime say.

A step's cost then follows the text's length in a few sizes, each of which a CUDA graph can be
captured for.
"""

from dataclasses import dataclass

from bita.runtime.backends.layout import Layout

LEAST = 256
# Slots behind the text that are looked at in any case: plain and tree decoding, whose steps differ
# in size, look at equally many then, and get the same bits.
ROOM = 128


@dataclass(frozen=True)
class Buckets:
    """sizes: numbers of slots, ascending; the last is the cache's capacity C."""

    sizes: tuple[int, ...]

    @classmethod
    def of(cls, capacity: int) -> "Buckets":
        """Doubling from 256 on."""
        sizes, size = [], LEAST
        while size < capacity:
            sizes.append(size)
            size *= 2
        return cls((*sizes, capacity))

    def size(self, num_used: int, layout: Layout, num_slots: int) -> int:
        """The slots that a step looks at which writes `num_slots` behind `num_used`."""
        known = int(layout.output_rows[0]) + 1  # rows that plain decoding has too
        needed = max(num_used + known + ROOM, num_used + num_slots)
        return next((size for size in self.sizes if size >= needed), self.sizes[-1])
