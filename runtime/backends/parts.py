"""The rows that several texts have in one step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bita.runtime.backends.layout import Layout
from bita.runtime.backends.paged_cache import PagedCache
from bita.tensors import Float32Array, Int64Array


@dataclass(eq=False)
class Part:
    """The rows of one text in a joint step.

    cache: where the text is. layout: of its rows, text before masks. tokens: ids of its text rows.
    top_ids [R, k], top_logits [R, k], logits [R, V] or None: what the step gave for the layout's
    output rows, overwritten by the next step.
    """

    cache: PagedCache
    layout: Layout
    tokens: Int64Array
    top_ids: Int64Array = field(init=False)
    top_logits: Float32Array = field(init=False)
    logits: Float32Array | None = field(init=False, default=None)

    @property
    def num_rows(self) -> int:
        return self.layout.num_rows


class JointStep(Protocol):
    """Runs the rows of several texts at once, with one adapter."""

    def run(self, parts: Sequence[Part], with_logits: bool = False) -> None:
        """Execute the step; each part has its results then. The caches have reserved the slots.

        Raises EngineError if that fails.
        """
