"""Random prompts, trees and adapters, and the logits of steps with them."""

import random
from collections.abc import Sequence

import numpy as np

from bita.adapter import Adapter, random_adapter
from bita.runtime.session import Session
from bita.tree import Tree

AR = Tree.root_only()


def prompt_ids(seed: int, length: int = 20) -> list[int]:
    return [random.Random(seed).randrange(4, 320) for _ in range(length)]


def random_tree(seed: int) -> Tree:
    rng = random.Random(seed)
    paths: list[tuple[int, ...]] = [()]
    for _ in range(rng.randint(1, 20)):
        parent = rng.choice(paths)
        paths.append((*parent, 1 + sum(path[:-1] == parent != path for path in paths)))
    widest = [path for path in set(paths) if max((0, *path)) <= 16]
    kept = [path for path in widest if all(path[:end] in widest for end in range(len(path)))]
    return Tree.from_paths(kept, {path: rng.randint(0, 3) for path in kept})


def drafting_adapter(session: Session, prefix_length: int, seed: int) -> Adapter:
    """Return a random adapter whose drafts are often right: masks resemble likely tokens."""
    identity = session.adapter.identity
    return random_adapter(identity, 3, prefix_length, scale=0.4, seed=seed)


def logits_of_text(session: Session, prompt: Sequence[int], num_tokens: int) -> list[np.ndarray]:
    """Return the top logits after each token of a generation, in text order."""
    decoder = session.decoder
    text = decoder.begin(prompt)
    decoder.step(text)
    rows: list[np.ndarray] = []
    while len(rows) < num_tokens:
        (bound, *_), before = decoder.pick_tree(text), decoder.stats.num_accepted.copy()
        decoder.step(text)
        taken = decoder.stats.num_accepted - before
        path = sorted(map(bound.tree.paths.index, taken))
        rows += [bound.step.top_logits[node].copy() for node in path]
    return rows[:num_tokens]
