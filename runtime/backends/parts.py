"""The parts of a step that several texts share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bita.runtime.backends.layout import Layout
from bita.runtime.backends.paged_cache import PagedCache
from bita.tensors import Float32Array, Int64Array


@dataclass(eq=False)
class Part:
    """The rows of one text in a joint step.

    cache: cache of the text.
    layout: placement of its rows, text rows before mask rows.
    tokens: token ids of its text rows.
    top_ids [R, k], top_logits [R, k], logits [R, V] or None: results for the layout's output rows,
    overwritten by the next step.
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
        """Execute the step and set the results of each part. The slots must be reserved.

        Raises EngineError if the step fails.
        """
