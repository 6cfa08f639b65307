"""Where the rows of one step stand and what they see: the static half of a step's inputs."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bita.tree import Tree

READ_NODES = 8  # nodes that a text's drafts are read with, each with its masks
PREFILL_ROWS = 256  # most prompt tokens of a step: bounds the memory of long prompts
# On CPUs attention computes what causality hides too, so smaller pieces are faster: 512 tokens of
# the default model in 145 ms of attention by 256, 118 ms by 128 (Xeon, 2 threads).
CPU_PREFILL_ROWS = 128


@dataclass(frozen=True, eq=False)
class Layout:
    """The placement of Q rows, R of which give tokens.

    offsets [Q]: position minus that of row 0. mask_index [Q]: which mask token a row holds, -1 for
    text. sees [Q, Q]: row i attends to row j. output_rows [R].
    """

    offsets: npt.NDArray[np.int64]
    mask_index: npt.NDArray[np.int64]
    sees: npt.NDArray[np.bool_]
    output_rows: npt.NDArray[np.int64]

    @property
    def num_rows(self) -> int:
        return len(self.offsets)

    @property
    def first_mask_row(self) -> int:
        """Rows from here on are masks or padding."""
        masks = np.flatnonzero(self.mask_index >= 0)
        return int(masks[0]) if len(masks) else self.num_rows

    @property
    def sees_prefix(self) -> npt.NDArray[np.bool_]:
        return self.mask_index >= 0


def tree_layout(tree: Tree, min_rows: int) -> Layout:
    """All rows of a tree, padded behind to at least `min_rows`; all give tokens."""
    num_rows = max(tree.num_rows, min_rows)
    layout = Layout(tree.offsets, tree.mask_index, tree.sees, np.arange(num_rows))
    return _padded(layout, num_rows)


def prefill_layout(num_tokens: int, num_masks: int, min_rows: int) -> Layout:
    """A piece of the prompt, and behind its last token a mask group; these give tokens."""
    num_rows = num_tokens + num_masks
    mask_index = np.arange(-num_tokens, num_masks).clip(-1)
    output_rows = np.arange(num_tokens - 1, num_rows)
    if len(output_rows) < min_rows:
        output_rows = np.resize(output_rows, min_rows)
    sees = np.tri(num_rows, dtype=np.bool_)
    layout = Layout(np.arange(num_rows), mask_index, sees, output_rows)
    return _padded(layout, max(num_rows, min_rows))


def widened(layout: Layout, num_rows: int) -> Layout:
    """More text rows behind a layout, all of whose rows give tokens."""
    return replace(_padded(layout, num_rows), output_rows=np.arange(num_rows))


def _padded(layout: Layout, num_rows: int) -> Layout:
    """More text rows behind a layout; nothing sees them and they keep what follows in order."""
    extra = num_rows - layout.num_rows
    if extra == 0:
        return layout
    return Layout(
        offsets=np.concatenate([layout.offsets, layout.offsets[-1] + 1 + np.arange(extra)]),
        mask_index=np.concatenate([layout.mask_index, np.full(extra, -1)]),
        sees=np.pad(layout.sees, ((0, extra), (0, extra))) | np.eye(num_rows, dtype=np.bool_),
        output_rows=layout.output_rows,
    )
