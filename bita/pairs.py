"""Pair scores: how well a draft follows the token in front of it, from their embeddings alone.

The masks of a group know neither each other's drafts nor the token that the model put in front of
them. But a tree's nodes hold both, so the children of a node are ordered by

    logit of the mask + (left(e[parent]) + bias) . right(e[child])

instead of the logit alone. Low-rank pair selection: DFlash 2; sequential dependence between heads:
Hydra (arXiv 2402.05109).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bita.errors import AdapterError
from bita.tensors import Float32Array, Int64Array, TensorSource, row_chunks

PAIR_TENSORS = ("pair_left", "pair_bias", "pair_right")

Pairs = Mapping[str, Float32Array]  # by PAIR_TENSORS: [hidden, r], [r], [hidden, r]; or empty


@dataclass(frozen=True, eq=False)
class PairTables:
    """What the scores need of every token: left, right [V, r], of any float type."""

    left: npt.NDArray[np.floating]
    right: npt.NDArray[np.floating]

    def scores(self, parent: int, candidates: Int64Array | Sequence[int]) -> Float32Array:
        """[k]: what is added to the logits of candidates [k] as children of a token."""
        left = self.left[parent].astype(np.float32)
        return np.asarray(self.right[candidates].astype(np.float32) @ left)

    def order(
        self, parents: Int64Array, candidates: Int64Array, logits: Float32Array
    ) -> Int64Array:
        """[n, k]: the candidates [k] as children of each parent [n], best first.

        logits: [k], of the candidates. Equal scores keep the order that was given.
        """
        left = self.left[parents].astype(np.float32)
        right = self.right[candidates].astype(np.float32)
        best = np.argsort(-(logits + left @ right.T), axis=1, kind="stable")
        return candidates[best]


def pair_rank(pairs: Pairs) -> int:
    """r; 0 without pair scores."""
    return int(pairs["pair_left"].shape[1]) if pairs else 0


def pair_tables(checkpoint: TensorSource, embedding: str, pairs: Pairs) -> PairTables:
    """The tables of a model; its embedding table is read a few MB at a time."""
    return tables_of(row_chunks(checkpoint, embedding), pairs)


def tables_of(embeddings: Iterable[Float32Array], pairs: Pairs) -> PairTables:
    """The tables, float16, for pieces [v, hidden] of an embedding table.

    Raises AdapterError that names the first token whose numbers float16 cannot hold.
    """
    left, right = [], []
    for rows in embeddings:
        with np.errstate(over="ignore", invalid="ignore"):
            left.append((rows @ pairs["pair_left"] + pairs["pair_bias"]).astype(np.float16))
            right.append((rows @ pairs["pair_right"]).astype(np.float16))
    tables = PairTables(np.concatenate(left), np.concatenate(right))
    for name, table in (("pair_left", tables.left), ("pair_right", tables.right)):
        finite = np.isfinite(table).all(-1)
        if not finite.all():
            raise AdapterError(
                f"the scores by {name} for token {int(np.argmin(finite))} are larger than float16 "
                "holds; use another adapter, or tune one again"
            )
    return tables


def pair_faults(shapes: Mapping[str, Sequence[int]], hidden_size: int | None) -> list[str]:
    """Where shapes of pair tensors do not fit each other or the model; None: not known."""
    present = {name: tuple(shapes[name]) for name in PAIR_TENSORS if name in shapes}
    if not present:
        return []
    faults = [f"tensor {name!r} is missing" for name in PAIR_TENSORS if name not in present]
    if faults:
        return faults
    left = present["pair_left"]
    hidden = left[0] if hidden_size is None and left else hidden_size
    rank = left[1] if len(left) == 2 else 0
    wanted = {"pair_left": (hidden, rank), "pair_bias": (rank,), "pair_right": (hidden, rank)}
    return [
        f"{name} is {list(present[name])}, not {list(shape)} with a rank above 0"
        for name, shape in wanted.items()
        if present[name] != shape or 0 in present[name]
    ]
