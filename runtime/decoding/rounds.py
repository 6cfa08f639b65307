"""The parts of a draft-verify round before and after its step."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from bita.runtime.backends.backend import StepResults
from bita.runtime.backends.cache import Cache
from bita.runtime.decoding.bound_trees import PlacedTree
from bita.runtime.decoding.drafting import accept
from bita.runtime.decoding.sequence import TokenSequence
from bita.tensors import Int64Array
from bita.tree import Path

AnyTree = TypeVar("AnyTree", bound=PlacedTree, covariant=True)


class PickedTree(NamedTuple, Generic[AnyTree]):
    """The tree of a round.

    guess: candidates of each depth, best first, for the spine and its siblings instead of mask
    drafts.
    from_masks: whether only a mask token supports the first candidate.
    """

    placed: AnyTree
    guess: Sequence[Sequence[int]] = ()
    from_masks: bool = False

    def fill(self, nodes: Int64Array, sequence: TokenSequence) -> None:
        """Write the sequence's root and its drafts into the token ids of the nodes, [N]."""
        nodes[0] = sequence.root
        self.placed.drafter.fill(nodes, sequence.drafts, self.guess)

    @property
    def num_guesses(self) -> int:
        """Nodes of the spine whose draft does not come from a mask token."""
        return 0 if self.from_masks else len(self.guess)


class Outcome(NamedTuple):
    """The result of a round for one text."""

    path: Path  # ranks of the accepted nodes
    tokens: list[int]  # emitted tokens


def finish_round(
    picked: PickedTree[PlacedTree],
    tokens: Sequence[int],
    sequence: TokenSequence,
    cache: Cache,
    results: StepResults,
) -> Outcome:
    """Accept nodes, commit their rows, read the next drafts and extend the sequence.

    tokens: tokens of the nodes.
    cache: cache into which the step wrote the sequence's rows.
    """
    tree, chooser = picked.placed, sequence.chooser
    path, bonus = accept(tree.children, tokens, chooser.choices(results), chooser.has_ended)
    cache.commit(path)
    group = tree.groups[path[-1]]
    sequence.drafts.read(results.top_ids[group], results.top_logits[group])
    emitted = [*(tokens[node] for node in path[1:]), bonus]
    sequence.extend(emitted, len(path) - 1)
    return Outcome(tree.tree.paths[path[-1]], emitted)
