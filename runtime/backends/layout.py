"""The positions and visibility of a step's rows: the static half of its inputs."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bita.tree import Tree

READ_NODES = 8  # nodes that a text's drafts are read with, each with its masks
PREFILL_ROWS = 256  # maximum prompt tokens in a step; limits the memory for long prompts
# On CPUs attention also computes what the causal mask hides, so smaller pieces are faster.
# Attention over 512 tokens of the default model takes 145 ms in pieces of 256 tokens and 118 ms in
# pieces of 128 (Xeon, 2 threads).
CPU_PREFILL_ROWS = 128


@dataclass(frozen=True, eq=False)
class Layout:
    """The placement of Q rows, R of which are output rows."""

    offsets: npt.NDArray[np.int64]  # [Q]: position relative to row 0
    mask_index: npt.NDArray[np.int64]  # [Q]: index of the row's mask token; -1: a text row
    sees: npt.NDArray[np.bool_]  # [Q, Q]: whether row i attends to row j
    output_rows: npt.NDArray[np.int64]  # [R]

    @property
    def num_rows(self) -> int:
        return len(self.offsets)

    @property
    def first_mask_row(self) -> int:
        """Index from which all rows are masks or padding."""
        masks = np.flatnonzero(self.mask_index >= 0)
        return int(masks[0]) if len(masks) else self.num_rows

    @property
    def sees_prefix(self) -> npt.NDArray[np.bool_]:
        """[Q]: whether a row attends to the prefix; only mask rows do."""
        return self.mask_index >= 0


def tree_layout(tree: Tree, min_rows: int) -> Layout:
    """Return a layout of a tree's rows, padded to at least `min_rows`; all are output rows."""
    num_rows = max(tree.num_rows, min_rows)
    layout = Layout(tree.offsets, tree.mask_index, tree.sees, np.arange(num_rows))
    return _pad(layout, num_rows)


def prefill_layout(num_tokens: int, num_masks: int, min_rows: int) -> Layout:
    """Return a layout of a piece of the prompt, followed by a mask group.

    The output rows are that of the last token and those of the masks.
    """
    num_rows = num_tokens + num_masks
    mask_index = np.arange(-num_tokens, num_masks).clip(-1)
    output_rows = np.arange(num_tokens - 1, num_rows)
    if len(output_rows) < min_rows:
        output_rows = np.resize(output_rows, min_rows)
    sees = np.tri(num_rows, dtype=np.bool_)
    layout = Layout(np.arange(num_rows), mask_index, sees, output_rows)
    return _pad(layout, max(num_rows, min_rows))


def widen(layout: Layout, num_rows: int) -> Layout:
    """Return the layout padded with text rows to `num_rows`; all rows are output rows."""
    return replace(_pad(layout, num_rows), output_rows=np.arange(num_rows))


def _pad(layout: Layout, num_rows: int) -> Layout:
    """Append text rows to which no other row attends, at the positions that follow."""
    extra = num_rows - layout.num_rows
    if extra == 0:
        return layout
    return Layout(
        offsets=np.concatenate([layout.offsets, layout.offsets[-1] + 1 + np.arange(extra)]),
        mask_index=np.concatenate([layout.mask_index, np.full(extra, -1)]),
        sees=np.pad(layout.sees, ((0, extra), (0, extra))) | np.eye(num_rows, dtype=np.bool_),
        output_rows=layout.output_rows,
    )
