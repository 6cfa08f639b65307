"""Steps that trees would take through measured texts, counted without running any."""

from collections.abc import Container, Mapping
from dataclasses import dataclass

from bita.calibration.acceptance import GUESSES, NOT_DRAFTED, Acceptance, Position
from bita.tree import Path, Tree
from bita.tree_table import Trees, TreeTable


@dataclass(frozen=True)
class Visit:
    """A step of a replay. place: of its root in the text. drafted: masks that the last step's node
    had. number: of its tree in the table.
    """

    place: int
    drafted: int
    number: int


def replay(acceptance: Acceptance, trees: Trees, mode: str = "tree") -> float:
    """Tokens per step of a tree, or of trees by state, on the texts, step by step as the decoder
    takes them.

    mode: "exact" accepts along the spine only.
    """
    num_steps = sum(len(text) for text in visited(acceptance, trees, mode))
    return acceptance.num_positions / num_steps if num_steps else 1.0


def visited(acceptance: Acceptance, trees: Trees, mode: str = "tree") -> list[list[Visit]]:
    """The steps that trees take through each text.

    Their roots are not any positions: a text that repeats itself is passed in few long steps.
    """
    table = TreeTable.of(trees)
    masks = [acceptable(tree, mode) for tree in table.trees]
    visits: list[list[Visit]] = []
    for text in acceptance.texts:
        place, drafted = 0, table.max_masks
        visits.append([])
        while place < len(text):
            number = table.number(drafted, text[place].match)
            visits[-1].append(Visit(place, drafted, number))
            path = accepted(text[place], table.trees[number], masks[number], drafted)
            place, drafted = place + len(path) + 1, masks[number][path]
    return visits


def acceptable(tree: Tree, mode: str) -> dict[Path, int]:
    """The paths of the nodes that a step may end on, with their masks."""
    masks = dict(zip(tree.paths, tree.num_masks, strict=True))
    return {path: count for path, count in masks.items() if mode == "tree" or {*path} <= {1}}


def accepted(position: Position, tree: Tree, masks: Mapping[Path, int], drafted: int) -> Path:
    """The node that a step at this root ends on, of a tree's acceptable ones.

    drafted: masks that the last step's node had. Beside a wrong guess from the text the masks'
    drafts stand one rank lower, unless the guess is among the better ones; that is not known here.
    """
    guessed = 0
    if tree.min_match and position.match >= tree.min_match:
        guessed = tree.spine_length
    return longest_of(masks, _free_path(position, drafted, guessed))


def longest_of(paths: Container[Path], path: Path) -> Path:
    """The longest beginning of a path that is one of these."""
    while path not in paths:
        path = path[:-1]
    return path


def accepted_freely(position: Position, drafted: int, min_match: int, most_rank: int) -> Path:
    """The same in a tree of all paths of these ranks, with a spine of any length.

    most_rank: 1 for the spine alone.
    """
    guessed = GUESSES if min_match and position.match >= min_match else 0
    path = _free_path(position, drafted, guessed)
    return path[: next((depth for depth, rank in enumerate(path) if rank > most_rank), len(path))]


def most_rank(acceptance: Acceptance, mode: str) -> int:
    """Of the nodes that a step may accept."""
    return 1 if mode == "exact" else acceptance.num_ranks


def _free_path(position: Position, drafted: int, guessed: int) -> Path:
    """guessed: nodes of the spine that hold a guess from the text."""
    right = min(position.right, guessed)
    ranks = position.ranks[:drafted]
    path: Path = (1,) * right
    for depth in range(right, len(ranks)):
        if ranks[depth] == NOT_DRAFTED:
            break
        beside = depth == right < guessed  # where the guess is wrong
        path = (*path, ranks[depth] + beside)
    return path
