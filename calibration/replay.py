"""Steps that trees would take through measured texts, counted without running any."""

from collections.abc import Container
from dataclasses import dataclass

from bita.calibration.acceptance import GUESSES, NOT_DRAFTED, Acceptance, Position
from bita.runtime.decoding.guard import Guard, GuardedTrees
from bita.tree import Path, Tree
from bita.tree_table import Trees, TreeTable


@dataclass(frozen=True)
class Visit:
    """A step of a replay."""

    place: int  # of the step's root in its text
    num_drafted: int  # masks of the node that the last step ended on; their drafts are at hand
    number: int  # of the state's tree in the table
    tree: Tree  # of the step: the state's, or what a guard took instead


def replay(acceptance: Acceptance, trees: Trees, mode: str = "tree") -> list[list[Visit]]:
    """Take the decoder's steps through each text, with one tree or with trees by state, guarded
    where they have costs.

    mode: "exact" accepts along the spine only. The roots of these steps are not all positions: a
    text that repeats itself is passed in few long steps.
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
            number = table.number(num_drafted, position.match)
            taken = guard.pick(number, position.match) if guard else number
            visits[-1].append(Visit(place, num_drafted, number, runnable[taken]))
            path = accept_path(position, num_drafted, runnable[taken], end_nodes[taken])
            if guard:
                guard.count(len(path) + 1, position.right > 0)
            place, num_drafted = place + len(path) + 1, end_nodes[taken][path]
    return visits


def count_tokens_per_step(acceptance: Acceptance, trees: Trees, mode: str = "tree") -> float:
    """Tokens that a step of the replay gives on average; 1.0 if there are no texts."""
    num_steps = sum(len(visits) for visits in replay(acceptance, trees, mode))
    return acceptance.num_positions / num_steps if num_steps else 1.0


def find_end_nodes(tree: Tree, mode: str) -> dict[Path, int]:
    """The nodes that a step may end on, by path, with the masks of each."""
    masks = dict(zip(tree.paths, tree.num_masks, strict=True))
    return {path: count for path, count in masks.items() if mode == "tree" or {*path} <= {1}}


def accept_path(
    position: Position, num_drafted: int, tree: Tree, end_nodes: Container[Path]
) -> Path:
    """The node that a step of the tree ends on at this root.

    The masks' drafts beside a wrong guess from the text are taken to be one rank lower. They are
    not if the guess is among the better ones; that is not known here.
    """
    guesses = tree.min_match and position.match >= tree.min_match
    num_guessed = tree.spine_length if guesses else 0
    return cut_to_node(_follow(position, num_drafted, num_guessed), end_nodes)


def accept_freely(position: Position, num_drafted: int, min_match: int, max_rank: int) -> Path:
    """The node that a step ends on in the tree of all paths with ranks up to `max_rank`.

    The spine of that tree holds a guess of GUESSES tokens where the text's match has at least
    `min_match` tokens; 0: it never does.
    """
    guesses = min_match and position.match >= min_match
    path = _follow(position, num_drafted, GUESSES if guesses else 0)
    return path[: next((depth for depth, rank in enumerate(path) if rank > max_rank), len(path))]


def cut_to_node(path: Path, nodes: Container[Path]) -> Path:
    """The longest beginning of a path that is one of these nodes; the root () must be."""
    while path not in nodes:
        path = path[:-1]
    return path


def max_end_rank(acceptance: Acceptance, mode: str) -> int:
    """The highest rank on a path that a step may accept; 1 is the spine alone."""
    return 1 if mode == "exact" else acceptance.num_ranks


def _follow(position: Position, num_drafted: int, num_guessed: int) -> Path:
    """The ranks of the true tokens, as far as the guess and the drafts have them.

    num_guessed: nodes of the spine that hold a guess from the text.
    """
    right = min(position.right, num_guessed)
    ranks = position.ranks[:num_drafted]
    path: Path = (1,) * right
    for depth in range(right, len(ranks)):
        if ranks[depth] == NOT_DRAFTED:
            break
        is_beside_guess = depth == right < num_guessed
        path = (*path, ranks[depth] + is_beside_guess)
    return path
