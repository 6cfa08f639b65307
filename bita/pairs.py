"""Pair scores: how well a draft follows the token before it, from their embeddings alone.

The masks of a group know neither each other's drafts nor the token that the model chose before
them. The nodes of a tree hold both, so the children of a node are ordered by

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

Pairs = Mapping[str, Float32Array]  # by PAIR_TENSORS: [hidden, r], [r], [hidden, r]; may be empty


@dataclass(frozen=True, eq=False)
class PairTables:
    """Both factors of the scores, for every token; any float type."""

    left: npt.NDArray[np.floating]  # [V, r]
    right: npt.NDArray[np.floating]  # [V, r]

    def scores(self, parent: int, candidates: Int64Array | Sequence[int]) -> Float32Array:
        """Return the scores [k] that are added to the logits of candidates [k] after a token."""
        left = self.left[parent].astype(np.float32)
        return np.asarray(self.right[candidates].astype(np.float32) @ left)

    def order(
        self, parents: Int64Array, candidates: Int64Array, logits: Float32Array
    ) -> Int64Array:
        """Return [n, k]: the candidates [k] as children of each parent [n], best first.

        `logits` [k] are those of the candidates. Candidates with equal scores keep their order.
        """
        left = self.left[parents].astype(np.float32)
        right = self.right[candidates].astype(np.float32)
        best = np.argsort(-(logits + left @ right.T), axis=1, kind="stable")
        return candidates[best]


def pair_rank(pairs: Pairs) -> int:
    """Return the rank r; 0 without pair scores."""
    return int(pairs["pair_left"].shape[1]) if pairs else 0


def pair_tables(checkpoint: TensorSource, embedding: str, pairs: Pairs) -> PairTables:
    """Compute the tables of a model, reading its embedding table a few MB at a time."""
    return tables_of(row_chunks(checkpoint, embedding), pairs)


def tables_of(embeddings: Iterable[Float32Array], pairs: Pairs) -> PairTables:
    """Compute the tables, in float16, from pieces [v, hidden] of an embedding table.

    Raises AdapterError that names the first token whose values float16 cannot hold.
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
                "can hold; use another adapter, or tune one again"
            )
    return tables


def pair_faults(shapes: Mapping[str, Sequence[int]], hidden_size: int | None) -> list[str]:
    """Describe the pair tensors whose shapes do not fit each other or the model.

    A `hidden_size` of None is unknown, and not compared.
    """
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
