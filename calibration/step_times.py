"""One stopwatch for steps of many sizes at several lengths of the cached text, taken in turns."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from bita.adapter import Adapter
from bita.engine import Engine
from bita.errors import EngineError
from bita.plan import PlanInfo
from bita.progress import OnCount, ignore_count
from bita.runtime.backends.backend import Backend, Step
from bita.runtime.backends.layout import tree_layout
from bita.tree import Tree

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 40, 48, 64, 96, 128)
SLOW = 10  # times the smallest step: more tokens than a step gives, even where text repeats itself
SLOW_ROUNDS = 2  # in which steps slower than that are timed; a curve of T(q) needs no more of them
Samples = list[list[list[float]]]  # in ms, [length][size][sample]
# Runs a bound step, and whether the step before it had another size; returns its samples in ms.
Stopwatch = Callable[[Step, bool], Sequence[float]]


def time_steps(
    backend: Backend,
    adapter: Adapter,
    rows: Sequence[int],
    cache_lengths: Sequence[int],
    rounds: Iterable[int],
    stopwatch: Stopwatch,
) -> Samples:
    """Times of steps of every size at every length.

    Each round visits all sizes once, in random order, so that a drift of the clock affects all of
    them equally; each size has all lengths in a row, in random order too, since a step after one of
    another size takes longer. A step is timed as a decode round sees it: its inputs are bound
    before, and all rows give tokens. Sizes that are too slow for any tree are timed in the first
    SLOW_ROUNDS rounds only. The cache's text is lost.
    """
    backend.cache.start(adapter)
    steps = [backend.bind(tree_layout(tree_of(n, adapter.num_masks), 1), adapter) for n in rows]
    samples: Samples = [[[] for _ in rows] for _ in cache_lengths]
    rng = np.random.default_rng(0)
    for number in rounds:
        sizes = range(len(steps)) if number < SLOW_ROUNDS else usable_sizes(samples[0])
        for size in rng.permutation(sizes):
            for turn, length in enumerate(rng.permutation(len(cache_lengths))):
                backend.cache.length = cache_lengths[length]
                samples[length][size].extend(stopwatch(steps[size], turn == 0))
    backend.cache.start(adapter)
    return samples


def usable_sizes(samples: Sequence[Sequence[float]]) -> list[int]:
    """Which of the sizes, by the samples of each, may be those of a tree that pays.

    That is not a step that takes SLOW times as long as one of the smallest size, since it would
    have to give more tokens than drafts are ever right.
    """
    limit = SLOW * min(samples[0])
    return [size for size, times in enumerate(samples) if min(times) <= limit]


def counted_rounds(total: int, on_progress: OnCount = ignore_count) -> Iterator[int]:
    """`total` rounds; reports (done, total) after each."""
    for number in range(total):
        yield number
        on_progress(number + 1, total)


def sizes_of(engine: Engine, max_rows: int) -> list[int]:
    """Rows of the steps to time: at most `max_rows`, what the cache has room for, and only sizes
    that a compiled engine has. Raises EngineError if none is left.
    """
    plan = engine.manifest.plan
    sizes = PlanInfo.from_manifest(plan).decode_rows if plan else ROWS
    fit = [size for size in sizes if size <= max_rows and size < text_slots(engine)]
    if not fit:
        raise EngineError(f"a cache of {engine.manifest.capacity} slots has no room for a step")
    return fit


def text_slots(engine: Engine) -> int:
    """Slots of the cache that the prefix leaves to the text and its drafts."""
    return engine.manifest.capacity - engine.manifest.prefix_length


def lengths_of(shares: Sequence[float], num_slots: int, max_length: int) -> list[int]:
    """Tokens of text for each share of `num_slots`, from 1 to `max_length`; increasing."""
    return sorted({min(max(int(share * num_slots), 1), max_length) for share in shares})


def tree_of(num_rows: int, num_masks: int) -> Tree:
    """A chain of nodes with their masks, `num_rows` in all; one and two rows are text alone, as
    in AR.
    """
    if num_rows <= 2:
        return Tree.chain(num_rows - 1, 0) if num_rows == 2 else Tree.root_only()
    num_nodes = -(-num_rows // (num_masks + 1))
    masks = [num_masks] * num_nodes
    masks[-1] -= num_nodes * (num_masks + 1) - num_rows
    return Tree.chain(num_nodes - 1, masks) if num_nodes > 1 else Tree.root_only(masks[0])
