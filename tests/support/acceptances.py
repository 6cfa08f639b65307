"""Invented measurements of drafts, and all small trees, to compare searches with."""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from bita.calibration.acceptance import GUESSES, Acceptance, Guess, Position
from bita.calibration.replay import replay
from bita.tree import Path
from bita.tree_table import Trees, TreeTable


def random_acceptance(num_masks: int, num_ranks: int, seed: int, length: int = 400) -> Acceptance:
    """Return random ranks like those of masks: rank 1 is the likeliest, later masks are worse."""
    rng = np.random.default_rng(seed)
    positions = []
    for _ in range(length):
        ranks = tuple(
            min(int(rng.geometric(0.45 - 0.1 * mask)), num_ranks + 1) % (num_ranks + 1)
            for mask in range(num_masks)
        )
        guesses = tuple(_random_guess(rng, num_ranks) for _ in range(num_masks + 1))
        positions.append(Position(ranks, guesses))
    return Acceptance((tuple(positions),), (100,), "x", num_ranks)


def _random_guess(rng: np.random.Generator, num_ranks: int) -> Guess:
    level = int(rng.integers(0, 5))
    if not level:
        return Guess()
    right = min(int(rng.geometric(0.5)) - 1, GUESSES)
    return Guess(level, right, int(rng.integers(2, num_ranks + 2)) % (num_ranks + 1))


def in_texts(acceptance: Acceptance, length: int) -> Acceptance:
    """Split the positions of one text into texts of this length."""
    (text,) = acceptance.texts
    texts = [text[start : start + length] for start in range(0, len(text), length)]
    return dataclasses.replace(acceptance, texts=tuple(texts), prompt_lengths=(100,) * len(texts))


def replay_speed(
    acceptance: Acceptance, trees: Trees, times: list[float], mode: str = "tree"
) -> float:
    """Return the tokens per millisecond of a replay."""
    table = TreeTable.of(trees)
    numbers = [visit.number for text in replay(acceptance, table, mode) for visit in text]
    return acceptance.num_positions / sum(times[table.trees[n].num_rows - 1] for n in numbers)


def all_trees(num_masks: int, num_ranks: int, max_rows: int) -> Iterator[dict[Path, int]]:
    """Yield every set of paths that includes parents, with every number of masks on each node."""

    def grow(nodes: tuple[Path, ...], candidates: list[Path]) -> Iterator[tuple[Path, ...]]:
        yield nodes
        if len(nodes) == max_rows:
            return
        for place, path in enumerate(candidates):
            deeper = [(*path, r) for r in range(1, num_ranks + 1)] if len(path) < num_masks else []
            yield from grow((*nodes, path), [*candidates[place + 1 :], *deeper])

    for nodes in grow(((),), [(rank,) for rank in range(1, num_ranks + 1)]):
        for masks in itertools.product(range(num_masks + 1), repeat=len(nodes)):
            if len(nodes) + sum(masks) <= max_rows:
                yield dict(zip(nodes, masks, strict=True))


def repeating(seed: int, num_texts: int = 40) -> Acceptance:
    """Return texts with repeated stretches, where guesses are mostly right; elsewhere never."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(num_texts):
        text: list[Position] = []
        while len(text) < 90:
            ranks = tuple(int(rng.random() < 0.3) for _ in range(3))
            if rng.random() < 0.1:
                length = int(rng.integers(8, 20))
                text += [
                    Position(ranks, (Guess(min(4 + n, 12), length - n),)) for n in range(length)
                ]
            text.append(Position(ranks, (Guess(int(rng.integers(0, 2))),)))
        texts.append(tuple(text))
    return Acceptance(tuple(texts), (50,) * num_texts, "x", 4)
