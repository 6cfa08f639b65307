"""From a row of logits to a token: which tokens are kept, how probable they are, and the draw.

A token is drawn from a row's true distribution with a number that depends on the seed and on the
token's position in the text only. A draft is then accepted where it is what was drawn, so sampled
text does not depend on drafts or trees: it equals that of plain decoding token for token.

The draw inverts the cumulative distribution in the order of token ids, not of probabilities: where
logits differ by rounding (mode "tree"), the borders between tokens move by as little.
"""

import ctypes
from dataclasses import dataclass
from functools import cache

import numpy as np

from bita.errors import LibraryMissingError
from bita.runtime.native.library import decoding_library
from bita.runtime.options import Options
from bita.tensors import Float32Array, Int64Array

LOW_TEMPERATURE = 1e-3  # below, float32 could not divide by it
BLOCK = 256  # tokens whose weights are summed before the draw looks closer


@dataclass(frozen=True, eq=False)
class Candidates:
    """Tokens that may follow, with weights in proportion to their probabilities.

    ids: ascending; None for all tokens.
    """

    ids: Int64Array | None
    weights: Float32Array

    def token(self, number: float) -> int:
        """The token at `number` in [0, 1) of the cumulative distribution."""
        place = _place(self.weights, number)
        return place if self.ids is None else int(self.ids[place])


class Draws:
    """Numbers in [0, 1), one for each position of a text from `position` on.

    choice: of several answers to one prompt. The number of a position is the first 53 bits of block
    position + 1 of Philox4x64-10 with key (seed, choice); numpy counts up before it draws.
    """

    def __init__(self, seed: int, choice: int, position: int) -> None:
        key = np.array([seed, choice], np.uint64)
        counter = np.array([position, 0, 0, 0], np.uint64)
        self._blocks = np.random.Philox(key=key, counter=counter)

    def next(self) -> float:
        """The number of the next position."""
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
    """The place in a row at `number` in [0, 1) of what temperature, top_k, top_p and min_p leave.

    logits: [n], contiguous, overwritten; the largest is finite. The library of native operators
    draws, so that the place is the same on every processor, and in the C library. Without it numpy
    does, whose exponentials differ in their last digits.
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
        raise MemoryError("there is no memory for a draw")
    place: int = task.place
    return place


@cache
def _native_draw() -> "ctypes._NamedFuncPointer | None":
    try:
        return decoding_library().bita_operators_draw
    except LibraryMissingError:
        return None


def candidates(logits: Float32Array, options: Options, ids: Int64Array | None = None) -> Candidates:
    """What temperature, top_k, top_p and min_p leave of a row, in this order.

    logits: [n], overwritten. ids: of the tokens that they belong to, None for all of the
    vocabulary. Each of the three looks at the distribution that the ones before it leave; tokens
    equal to the last that is kept are kept too, so that the order of equal ones does not matter.
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
    """log of the sum of exp of a row, so that logit - this is a log-probability."""
    best = logits.max()
    return float(best) + float(np.log(np.exp(logits - best).sum(dtype=np.float64)))


def best_tokens(logits: Float32Array, count: int) -> list[int]:
    """The ids of the best tokens, best first; the lower id first where they are equal."""
    count = min(count, len(logits))
    if count == 0:
        return []
    least = np.partition(logits, len(logits) - count)[-count]
    kept = np.flatnonzero(logits >= least)
    return [int(token) for token in kept[np.argsort(-logits[kept], kind="stable")][:count]]


def _weights(logits: Float32Array, temperature: float) -> Float32Array:
    """Probabilities over that of the best; in the place of the logits, where memory is warm."""
    logits -= logits.max()
    if temperature > LOW_TEMPERATURE:
        logits /= np.float32(temperature)
        return np.exp(logits, out=logits)
    with np.errstate(over="ignore"):  # to -inf, which weighs nothing
        scaled = np.divide(logits, temperature, dtype=np.float64)
    return np.exp(scaled).astype(np.float32)


def _nucleus_threshold(weights: Float32Array, top_p: float) -> float:
    """The weight of the lightest of the heaviest tokens that together have `top_p` of all weight.

    Only tokens above an even share of the rest are sorted: all below it weigh less than the rest.
    """
    total = float(weights.sum(dtype=np.float64))
    heavy = weights[weights >= (1 - top_p) * total / len(weights)]
    ordered = np.sort(heavy)[::-1]
    sums = np.cumsum(ordered, dtype=np.float64)
    last = min(int(np.searchsorted(sums, top_p * total)), len(sums) - 1)
    return float(ordered[last])


def _place(weights: Float32Array, number: float) -> int:
    """The first place at which the sum of the weights exceeds `number` of the whole."""
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
