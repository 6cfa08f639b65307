"""Quality of drafts on held-out text: ranks of the true tokens, and the results of trees.

Greedy text is known in advance, so decoding can be replayed from the ranks alone: each step accepts
the tree's longest path that holds the true tokens. This is exact, since the text does not depend on
the drafts.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bita.pairs import PairTables
from bita.tensors import Float32Array, Int64Array
from bita.tree import BITA_WIDTHS, Tree
from bita.tuning.mask_model import AdapterParameters, MaskModel
from bita.tuning.mask_rows import MaskRows, all_rows
from bita.tuning.training_texts import TrainingText

REPORTED_RANKS = (1, 5, 10)
ROW_BUDGETS = (16, 32, 64)
WORST_RANK = 16  # drafts of a higher rank are never used
ROWS_AT_ONCE = 384  # bounds the logits: 75 MB for a vocabulary of 49k, 400 MB for one of 262k


@dataclass(frozen=True)
class Drafts:
    """The best drafts of every group of a response; A groups, M masks, k = WORST_RANK drafts."""

    token_ids: Int64Array  # [A, M, k], best first
    logits: Float32Array  # [A, M, k]
    true: Int64Array  # [A, M]: the true token; -1 after the end of the text
    before: Int64Array  # [A, M]: the token before the true one, which the model chose

    def true_ranks(self, pairs: PairTables | None = None) -> Int64Array:
        """Return the true tokens' ranks [A, M]: 1 for the best draft, 0 if no draft is right.

        If `pairs` is given, drafts are ordered by their pair scores after the token before, too.
        """
        is_true = self.token_ids == self.true[..., None]
        if pairs is not None:
            left = pairs.left[self.before].astype(np.float32)[..., None]
            right = pairs.right[self.token_ids].astype(np.float32)
            scores = self.logits + (right @ left)[..., 0]
            order = np.argsort(-scores, axis=-1, kind="stable")
            is_true = np.take_along_axis(is_true, order, axis=-1)
        return np.where(is_true.any(-1), 1 + is_true.argmax(-1), 0)


@torch.no_grad()
def text_drafts(model: MaskModel, parameters: AdapterParameters, text: TrainingText) -> Drafts:
    """Return the drafts of each group's masks in a response."""
    num_masks = len(parameters.mask_embeddings)
    num_tokens = len(text.token_ids)
    rows = all_rows(text.num_prompt, num_tokens, num_masks)
    context = model.read([text.token_ids], num_tokens - 1)  # no logits of the text are needed
    tokens = np.array(text.token_ids)
    shape = (len(np.unique(rows.anchors)), num_masks)
    found = Drafts(
        np.zeros((*shape, WORST_RANK), np.int64),
        np.zeros((*shape, WORST_RANK), np.float32),
        np.full(shape, -1, np.int64),
        np.zeros(shape, np.int64),
    )
    for piece in _pieces(rows, ROWS_AT_ONCE // num_masks):
        best = model.mask_logits(parameters, context, [piece])[0].float().topk(WORST_RANK)
        place = piece.anchors - rows.anchors[0], piece.masks
        found.token_ids[place] = best.indices.cpu().numpy()
        found.logits[place] = best.values.cpu().numpy()
        found.true[place] = tokens[piece.labels]
        found.before[place] = tokens[piece.positions]
    return found


@dataclass(frozen=True)
class DraftQuality:
    """Quality of the drafts in some texts."""

    tables: Sequence[Int64Array]  # ranks of all groups [A, M], for each text

    @property
    def num_masks(self) -> int:
        return int(self.tables[0].shape[1])

    def accuracy(self, mask: int, rank: int) -> float:
        """Return the share of groups whose mask has the true token among its best `rank` drafts."""
        return self._share(np.concatenate(self.tables)[:, mask], rank)

    def conditional(self, mask: int, rank: int) -> float:
        """Return `accuracy` among groups in which all earlier masks' best drafts are right."""
        table = np.concatenate(self.tables)
        return self._share(table[(table[:, :mask] == 1).all(1), mask], rank)

    def tokens_per_step(self, tree: Tree) -> float:
        """Return the mean number of tokens per step when the texts are decoded with this tree.

        Every node may be accepted (mode "tree"). As in a session, the prefill and its token are not
        counted, nor are drafts of a text's last step beyond its end.
        """
        return sum(map(len, self.tables)) / sum(self.num_steps(tree))

    def num_steps(self, tree: Tree) -> list[int]:
        """Return the number of steps of each text with this tree; a table has a row per token."""
        paths = set(tree.paths)
        return [_num_steps(table, paths) for table in self.tables]

    def best_tree(self, num_rows: int) -> Tree:
        """Return the tree of at most `num_rows` rows, M masks per node, that is right most often.

        Nodes are the most frequent prefixes of the true ranks. A prefix is at least as frequent as
        its extensions, so every node's parent is among the nodes.
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

    def trees(self) -> dict[str, Tree]:
        """Return the trees of a report: the chain, BiTA's triangle, and the best of some sizes."""
        num_masks = self.num_masks
        return {
            "chain": Tree.chain(num_masks),
            "triangle": Tree.triangle(BITA_WIDTHS[:num_masks], num_masks),
            **{f"best_{rows}_rows": self.best_tree(rows) for rows in ROW_BUDGETS},
        }

    def report(self, trees: Mapping[str, Tree] | None = None) -> dict[str, Any]:
        """Return all measures as JSON values.

        Without `trees`, those of `trees()` are used. The best of them are chosen on the text on
        which they are measured, so their results are slightly too good.
        """
        masks = range(self.num_masks)
        trees = self.trees() if trees is None else trees
        return {
            "num_groups": sum(map(len, self.tables)),
            "accuracy": [[self.accuracy(k, r) for r in REPORTED_RANKS] for k in masks],
            "conditional": [[self.conditional(k, r) for r in REPORTED_RANKS] for k in masks],
            "tokens_per_step": {name: self.tokens_per_step(tree) for name, tree in trees.items()},
        }

    @staticmethod
    def _share(ranks: Int64Array, rank: int) -> float:
        return float(((ranks > 0) & (ranks <= rank)).mean()) if len(ranks) else 0.0


def evaluate(
    model: MaskModel, parameters: AdapterParameters, texts: Sequence[TrainingText]
) -> DraftQuality:
    """Return the draft quality of an adapter on texts that it was not tuned on."""
    pairs = parameters.pair_tables(model)
    return DraftQuality([text_drafts(model, parameters, text).true_ranks(pairs) for text in texts])


def _pieces(rows: MaskRows, num_anchors: int) -> Iterator[MaskRows]:
    """Yield the rows in pieces of `num_anchors` anchors."""
    anchors = np.unique(rows.anchors)
    for start in range(0, len(anchors), num_anchors):
        own = np.isin(rows.anchors, anchors[start : start + num_anchors])
        yield MaskRows(rows.anchors[own], rows.masks[own])


def _num_steps(table: Int64Array, paths: set[tuple[int, ...]]) -> int:
    anchor = steps = 0
    while anchor < len(table):
        anchor += 1 + _num_accepted(table[anchor], paths)
        steps += 1
    return steps


def _num_accepted(ranks: Int64Array, paths: set[tuple[int, ...]]) -> int:
    """Return the number of accepted drafts of a group: its longest prefix that is in `paths`."""
    accepted = 0
    while accepted < len(ranks) and tuple(ranks[: accepted + 1].tolist()) in paths:
        accepted += 1
    return accepted
