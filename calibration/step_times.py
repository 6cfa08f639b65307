"""Time steps of many sizes at several lengths of the cached text, interleaved."""

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
SLOW = 10  # times the smallest step; more tokens than a step ever gives, even in repetitive text
SLOW_ROUNDS = 2  # rounds in which slower steps are timed; a curve of T(q) needs no more of them
Samples = list[list[list[float]]]  # in ms, [length][size][sample]
# Runs a bound step, given whether the step before it had another size; returns samples in ms.
Stopwatch = Callable[[Step, bool], Sequence[float]]


def time_steps(
    backend: Backend,
    adapter: Adapter,
    rows: Sequence[int],
    cache_lengths: Sequence[int],
    rounds: Iterable[int],
    stopwatch: Stopwatch,
) -> Samples:
    """Time steps of every size at every length. Clears the cache.

    Each round visits all sizes once, in random order, so that clock drift affects them equally. All
    lengths of a size follow each other, also in random order, since a step takes longer after one
    of another size. A step is timed as in decoding: its inputs are bound beforehand, and all rows
    give tokens. Sizes too slow for any tree are timed in the first SLOW_ROUNDS rounds only.

    Args:
        backend: Backend that runs the steps.
        adapter: Adapter whose masks and prefix they use.
        rows: Sizes of the steps.
        cache_lengths: Tokens of text in the cache.
        rounds: Number of each round.
        stopwatch: Runs and times one step.

    Returns:
        Samples in ms, by length and size.
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
    """Return the indices of the sizes that a worthwhile tree may have, given samples of each size.

    A step that takes more than SLOW times as long as one of the smallest size would need more right
    drafts than there ever are.
    """
    limit = SLOW * min(samples[0])
    return [size for size, times in enumerate(samples) if min(times) <= limit]


def counted_rounds(total: int, on_progress: OnCount = ignore_count) -> Iterator[int]:
    """Yield the numbers of `total` rounds; report (done, total) after each."""
    for number in range(total):
        yield number
        on_progress(number + 1, total)


def sizes_of(engine: Engine, max_rows: int) -> list[int]:
    """Return the rows of the steps to time: at most `max_rows`, and no more than fit the cache.

    A compiled engine has only the sizes of its plan. Raises EngineError if no size is left.
    """
    plan = engine.manifest.plan
    sizes = PlanInfo.from_manifest(plan).decode_rows if plan else ROWS
    fit = [size for size in sizes if size <= max_rows and size < text_slots(engine)]
    if not fit:
        raise EngineError(f"a cache of {engine.manifest.capacity} slots has no room for a step")
    return fit


def text_slots(engine: Engine) -> int:
    """Return the number of cache slots that the prefix leaves for the text and its drafts."""
    return engine.manifest.capacity - engine.manifest.prefix_length


def lengths_of(shares: Sequence[float], num_slots: int, max_length: int) -> list[int]:
    """Return the text length for each share of `num_slots`, from 1 to `max_length`, ascending."""
    return sorted({min(max(int(share * num_slots), 1), max_length) for share in shares})


def tree_of(num_rows: int, num_masks: int) -> Tree:
    """Return a chain of nodes with `num_masks` on each, with `num_rows` rows in all.

    Trees of one or two rows have no masks, as in AR.
    """
    if num_rows <= 2:
        return Tree.chain(num_rows - 1, 0) if num_rows == 2 else Tree.root_only()
    num_nodes = -(-num_rows // (num_masks + 1))
    masks = [num_masks] * num_nodes
    masks[-1] -= num_nodes * (num_masks + 1) - num_rows
    return Tree.chain(num_nodes - 1, masks) if num_nodes > 1 else Tree.root_only(masks[0])
