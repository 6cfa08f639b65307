"""Count the steps that trees would take through measured texts, without running the model."""

from collections.abc import Container
from dataclasses import dataclass

from bita.calibration.acceptance import NOT_DRAFTED, Acceptance, Position
from bita.runtime.decoding.guard import Guard, GuardedTrees
from bita.tree import Path, Tree
from bita.tree_table import Trees, TreeTable


@dataclass(frozen=True)
class Visit:
    """A step of a replay."""

    place: int  # index of the step's root in its text
    num_drafted: int  # masks of the node that the last step ended on; their drafts are available
    number: int  # index of the state's tree in the table
    tree: Tree  # the state's tree, or the one that a guard took instead


def replay(acceptance: Acceptance, trees: Trees, mode: str = "tree") -> list[list[Visit]]:
    """Take the decoder's steps through each text.

    The roots of these steps are not all positions: a text that repeats itself is passed in few long
    steps.

    Args:
        acceptance: Measured texts.
        trees: One tree, or a table with a tree for each state. A table with costs is guarded.
        mode: "exact" accepts along the spine only; "tree" accepts any node.

    Returns:
        The steps of each text, in order.
    """
    table = TreeTable.of(trees)
    guarded = GuardedTrees(table) if table.costs else None
    runnable = guarded.trees if guarded else table.trees
    end_nodes = [find_end_nodes(tree, mode) for tree in runnable]
    visits: list[list[Visit]] = []
    for text in acceptance.texts:
        place, num_drafted = 0, table.max_masks
        guard = Guard(guarded) if guarded else None
        visits.append([])
        while place < len(text):
            position = text[place]
            guess = position.guess(num_drafted)
            number = table.number(num_drafted, guess.level)
            taken = guard.pick(number, guess.level, bool(guess.from_masks)) if guard else number
            visits[-1].append(Visit(place, num_drafted, number, runnable[taken]))
            path = accept_path(position, num_drafted, runnable[taken], end_nodes[taken])
            if guard:
                guard.count(len(path) + 1, guess.right > 0)
            place, num_drafted = place + len(path) + 1, end_nodes[taken][path]
    return visits


def count_tokens_per_step(acceptance: Acceptance, trees: Trees, mode: str = "tree") -> float:
    """Return the mean number of tokens per step of the replay; 1.0 if there are no texts."""
    num_steps = sum(len(visits) for visits in replay(acceptance, trees, mode))
    return acceptance.num_positions / num_steps if num_steps else 1.0


def find_end_nodes(tree: Tree, mode: str) -> dict[Path, int]:
    """Map the path of every node that a step may end on to the number of its masks."""
    masks = dict(zip(tree.paths, tree.num_masks, strict=True))
    return {path: count for path, count in masks.items() if mode == "tree" or {*path} <= {1}}


def accept_path(
    position: Position, num_drafted: int, tree: Tree, end_nodes: Container[Path]
) -> Path:
    """Return the node that a step of the tree ends on at this root."""
    guesses = tree.min_level and position.guess(num_drafted).level >= tree.min_level
    return cut_to_node(_follow(position, num_drafted, bool(guesses)), end_nodes)


def accept_freely(position: Position, num_drafted: int, min_level: int, max_rank: int) -> Path:
    """Return the node that a step ends on in the tree of all paths with ranks up to `max_rank`.

    That tree guesses if the level of the guess is at least `min_level`; with 0 it never guesses.
    """
    guesses = min_level and position.guess(num_drafted).level >= min_level
    path = _follow(position, num_drafted, bool(guesses))
    return path[: next((depth for depth, rank in enumerate(path) if rank > max_rank), len(path))]


def cut_to_node(path: Path, nodes: Container[Path]) -> Path:
    """Return the longest prefix of a path that is in `nodes`, which must contain the root ()."""
    while path not in nodes:
        path = path[:-1]
    return path


def max_end_rank(acceptance: Acceptance, mode: str) -> int:
    """Return the highest rank that an accepted path may contain; 1 for the spine alone."""
    return 1 if mode == "exact" else acceptance.num_ranks


def _follow(position: Position, num_drafted: int, guesses: bool) -> Path:
    """Return the ranks of the true tokens, as far as the guess and the drafts contain them.

    The guess ranks the children of the spine's nodes; masks draft the children of all other nodes.
    """
    path: Path = ()
    if guesses:
        guess = position.guess(num_drafted)
        path = (1,) * guess.right
        if guess.rank == NOT_DRAFTED:
            return path
        path = (*path, guess.rank)
    for rank in position.ranks[len(path) : num_drafted]:
        if rank == NOT_DRAFTED:
            break
        path = (*path, rank)
    return path
