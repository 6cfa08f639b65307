"""Sampling: filter a row of logits, compute probabilities, and draw a token.

A token is drawn from a row's true distribution with a number that depends only on the seed and on
the token's position in the text. A draft is accepted if it equals the drawn token, so sampled text
does not depend on drafts or trees: it equals that of plain decoding token for token.

The draw inverts the cumulative distribution in the order of token ids, not of probabilities. Where
logits differ by rounding (mode "tree"), the boundaries between tokens then move just as little.
"""

import ctypes
from dataclasses import dataclass
from functools import cache

import numpy as np

from bita.errors import LibraryMissingError
from bita.runtime.native.library import decoding_library
from bita.runtime.options import Options
from bita.tensors import Float32Array, Int64Array

LOW_TEMPERATURE = 1e-3  # below it, division in float32 would overflow
BLOCK = 256  # tokens per partial sum, with which the draw begins its search


@dataclass(frozen=True, eq=False)
class Candidates:
    """Tokens that may follow, with weights proportional to their probabilities."""

    ids: Int64Array | None  # ascending; None: all tokens
    weights: Float32Array

    def token(self, number: float) -> int:
        """Return the token at `number` in [0, 1) of the cumulative distribution."""
        place = _place(self.weights, number)
        return place if self.ids is None else int(self.ids[place])


class Draws:
    """Numbers in [0, 1), one for each position of a text, starting at `position`.

    A position's number is the first 53 bits of block position + 1 of Philox4x64-10 with key
    (seed, choice); the + 1 is there because numpy increments the counter before it draws.

    choice: number of the answer among several to one prompt.
    """

    def __init__(self, seed: int, choice: int, position: int) -> None:
        key = np.array([seed, choice], np.uint64)
        counter = np.array([position, 0, 0, 0], np.uint64)
        self._blocks = np.random.Philox(key=key, counter=counter)

    def next(self) -> float:
        """Return the number of the next position."""
        return (int(self._blocks.random_raw(4)[0]) >> 11) * 2.0**-53


class _DrawTask(ctypes.Structure):
    """`DrawTask` of runtime/native/decoding/sampling.h."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("temperature", ctypes.c_double),
        ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double),
        ("top_k", ctypes.c_int64),
        ("number", ctypes.c_double),
        ("place", ctypes.c_int64),
    )


def drawn_place(logits: Float32Array, options: Options, number: float) -> int:
    """Draw a position of a row, after temperature, top_k, top_p and min_p.

    The library of native operators draws, so that the result is the same on every processor and in
    the C library. Without it numpy draws; its exponentials differ in the last digits.

    logits: [n], contiguous, overwritten; the largest is finite.
    number: in [0, 1), the place in the cumulative distribution.
    """
    draw = _native_draw()
    if draw is None:
        return candidates(logits, options).token(number)
    row = np.ascontiguousarray(logits)
    task = _DrawTask(
        *(row.ctypes.data, len(row), options.temperature, options.top_p, options.min_p),
        *(min(options.top_k, len(row)), number, 0),
    )
    if draw(ctypes.byref(task)) != 0:
        raise MemoryError("out of memory for a draw")
    place: int = task.place
    return place


@cache
def _native_draw() -> "ctypes._NamedFuncPointer | None":
    try:
        return decoding_library().bita_operators_draw
    except LibraryMissingError:
        return None


def candidates(logits: Float32Array, options: Options, ids: Int64Array | None = None) -> Candidates:
    """Apply temperature, top_k, top_p and min_p to a row; return the remaining tokens.

    Each of the three filters looks at the distribution that the previous ones leave. Tokens equal
    to the last one kept are kept too, so that the order of equal tokens does not matter.

    logits: [n], overwritten.
    ids: token ids of the logits. None: the whole vocabulary.
    """
    if 0 < options.top_k < len(logits):
        least = np.partition(logits, len(logits) - options.top_k)[-options.top_k]
        kept = np.flatnonzero(logits >= least)
        logits, ids = logits[kept], kept if ids is None else ids[kept]
    weights = _weights(logits, options.temperature)
    min_weight = options.min_p  # the best one weighs 1
    if options.top_p < 1:
        min_weight = max(min_weight, _nucleus_threshold(weights, options.top_p))
    if min_weight > 0:
        kept = np.flatnonzero(weights >= min_weight)
        weights, ids = weights[kept], kept if ids is None else ids[kept]
    return Candidates(ids, weights)


def log_partition(logits: Float32Array) -> float:
    """Return log(sum(exp(row))); a logit minus this is a log-probability."""
    best = logits.max()
    return float(best) + float(np.log(np.exp(logits - best).sum(dtype=np.float64)))


def best_tokens(logits: Float32Array, count: int) -> list[int]:
    """Return the ids of the best tokens, best first; of equal ones the lower id comes first."""
    count = min(count, len(logits))
    if count == 0:
        return []
    least = np.partition(logits, len(logits) - count)[-count]
    kept = np.flatnonzero(logits >= least)
    return [int(token) for token in kept[np.argsort(-logits[kept], kind="stable")][:count]]


def _weights(logits: Float32Array, temperature: float) -> Float32Array:
    """Return probabilities relative to the best; in place of the logits, whose memory is cached."""
    logits -= logits.max()
    if temperature > LOW_TEMPERATURE:
        logits /= np.float32(temperature)
        return np.exp(logits, out=logits)
    with np.errstate(over="ignore"):  # to -inf, which weighs nothing
        scaled = np.divide(logits, temperature, dtype=np.float64)
    return np.exp(scaled).astype(np.float32)


def _nucleus_threshold(weights: Float32Array, top_p: float) -> float:
    """Return the smallest weight among the heaviest tokens that together have `top_p` of it all.

    Only tokens with at least an even share of the rest are sorted: all tokens below that together
    weigh less than the rest.
    """
    total = float(weights.sum(dtype=np.float64))
    heavy = weights[weights >= (1 - top_p) * total / len(weights)]
    ordered = np.sort(heavy)[::-1]
    sums = np.cumsum(ordered, dtype=np.float64)
    last = min(int(np.searchsorted(sums, top_p * total)), len(sums) - 1)
    return float(ordered[last])


def _place(weights: Float32Array, number: float) -> int:
    """Return the first position at which the cumulative weight exceeds `number` of the total."""
    whole = len(weights) // BLOCK * BLOCK
    blocks = weights[:whole].reshape(-1, BLOCK).sum(1)
    sums = np.cumsum(np.append(blocks, weights[whole:].sum()), dtype=np.float64)
    target = number * float(sums[-1])
    block = int(np.searchsorted(sums, target, side="right"))
    inside = weights[block * BLOCK : (block + 1) * BLOCK]
    rest = target - (float(sums[block - 1]) if block else 0.0)
    place = int(np.searchsorted(np.cumsum(inside, dtype=np.float64), rest, side="right"))
    if place == len(inside):  # the block's sum was rounded
        place = int(np.flatnonzero(inside)[-1])
    return block * BLOCK + place
