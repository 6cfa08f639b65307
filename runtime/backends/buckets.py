"""The number of cache slots that a step reads, for graphs that take it as an input.

The cost of a step then grows with the text's length, in a few sizes. A CUDA graph can be captured
for each size.
"""

from dataclasses import dataclass

from bita.runtime.backends.layout import Layout

MIN_SIZE = 256
# Slots after the text that are always read, so that plain and tree decoding read equally many and
# compute the same bits, although their steps differ in size.
ROOM = 128


@dataclass(frozen=True)
class Buckets:
    """Possible numbers of slots that a step reads."""

    sizes: tuple[int, ...]  # ascending; the last is the cache's capacity C

    @classmethod
    def of(cls, capacity: int) -> "Buckets":
        """Return sizes that double from 256 up to the capacity."""
        sizes, size = [], MIN_SIZE
        while size < capacity:
            sizes.append(size)
            size *= 2
        return cls((*sizes, capacity))

    def size(self, num_used: int, layout: Layout, num_slots: int) -> int:
        """Return the slots that a step reads if it writes `num_slots` after `num_used`."""
        known = int(layout.output_rows[0]) + 1  # rows that plain decoding also has
        needed = max(num_used + known + ROOM, num_used + num_slots)
        return next((size for size in self.sizes if size >= needed), self.sizes[-1])
