"""How good drafts are on held-out text: ranks of the true tokens, and what trees make of them.

Greedy text is known beforehand, so decoding can be replayed from the ranks alone: at each step the
tree's longest path that holds the true tokens is accepted. That is exact, since the text does not
depend on the drafts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bita.tree import BITA_WIDTHS, Tree
from bita.tuning.mask_model import AdapterParameters, MaskModel
from bita.tuning.mask_rows import all_rows
from bita.tuning.trainer import flatten
from bita.tuning.training_texts import TrainingText

Int64Array = npt.NDArray[np.int64]
REPORTED_RANKS = (1, 5, 10)
ROW_BUDGETS = (16, 32, 64)
WORST_RANK = 16  # beyond it a draft is never used


@torch.no_grad()
def true_ranks(model: MaskModel, parameters: AdapterParameters, text: TrainingText) -> Int64Array:
    """[A, M]: rank of the true token among the drafts of each mask of each group of a response.

    1 is the best draft; 0 stands for no such token or one beyond WORST_RANK.
    """
    num_masks = len(parameters.mask_embeddings)
    rows = all_rows(text.num_prompt, len(text.token_ids), num_masks)
    context = model.read([text.token_ids], text.num_prompt)
    flat = flatten([text], [rows], context, model.mask_logits(parameters, context, [rows]))
    of_true = flat.drafts.gather(1, flat.tokens[:, None])
    ranks = 1 + (flat.drafts > of_true).sum(1).cpu().numpy()
    table = np.zeros((rows.anchors.max() - rows.anchors.min() + 1, num_masks), np.int64)
    table[rows.anchors - rows.anchors.min(), rows.masks] = np.where(ranks <= WORST_RANK, ranks, 0)
    return table


@dataclass(frozen=True)
class DraftQuality:
    """The ranks of all groups of some texts, [A, M] each, in text order."""

    tables: Sequence[Int64Array]

    @property
    def num_masks(self) -> int:
        return int(self.tables[0].shape[1])

    def accuracy(self, mask: int, rank: int) -> float:
        """Share of groups whose mask has the true token among its best `rank` drafts."""
        return self._share(np.concatenate(self.tables)[:, mask], rank)

    def conditional(self, mask: int, rank: int) -> float:
        """The same among groups in which the best drafts of all masks before were right."""
        table = np.concatenate(self.tables)
        return self._share(table[(table[:, :mask] == 1).all(1), mask], rank)

    def tokens_per_step(self, tree: Tree) -> float:
        """Mean tokens emitted per step when the texts are decoded with this tree."""
        paths = set(tree.paths)
        emitted = steps = 0
        for table in self.tables:
            anchor = 0
            while anchor < len(table):
                accepted = _accepted(table[anchor], paths)
                anchor += 1 + accepted
                emitted += 1 + accepted
                steps += 1
        return emitted / steps

    def best_tree(self, num_rows: int) -> Tree:
        """The tree of at most `num_rows` rows, M masks on each node, that is right most often.

        Nodes are the most frequent beginnings of the true ranks; a beginning is never less
        frequent than what goes on from it, so every node's parent is among them.
        """
        counts: Counter[tuple[int, ...]] = Counter()
        for ranks in np.concatenate(self.tables).tolist():
            for end in range(1, len(ranks) + 1):
                if ranks[end - 1] == 0:
                    break
                counts[tuple(ranks[:end])] += 1
        num_nodes = max(1, num_rows // (1 + self.num_masks))
        best = sorted(counts, key=lambda path: (-counts[path], len(path), path))
        return Tree.from_paths(best[: num_nodes - 1], self.num_masks)

    def report(self) -> dict[str, Any]:
        """Everything above as JSON values."""
        masks = range(self.num_masks)
        trees = {f"best_{rows}_rows": self.best_tree(rows) for rows in ROW_BUDGETS}
        triangle = Tree.triangle(BITA_WIDTHS[: self.num_masks], self.num_masks)
        return {
            "num_groups": sum(map(len, self.tables)),
            "accuracy": [[self.accuracy(k, r) for r in REPORTED_RANKS] for k in masks],
            "conditional": [[self.conditional(k, r) for r in REPORTED_RANKS] for k in masks],
            "tokens_per_step": {
                "triangle": self.tokens_per_step(triangle),
                **{name: self.tokens_per_step(tree) for name, tree in trees.items()},
            },
        }

    @staticmethod
    def _share(ranks: Int64Array, rank: int) -> float:
        return float(((ranks > 0) & (ranks <= rank)).mean()) if len(ranks) else 0.0


def evaluate(
    model: MaskModel, parameters: AdapterParameters, texts: Sequence[TrainingText]
) -> DraftQuality:
    """The draft quality of an adapter on texts that it was not tuned on."""
    return DraftQuality([true_ranks(model, parameters, text) for text in texts])


def _accepted(ranks: Int64Array, paths: set[tuple[int, ...]]) -> int:
    """How many drafts of a group are accepted: its longest beginning that is a path."""
    accepted = 0
    while accepted < len(ranks) and tuple(ranks[: accepted + 1].tolist()) in paths:
        accepted += 1
    return accepted
