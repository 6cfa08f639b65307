"""Prefill: read tokens into the cache piece by piece."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from bita.adapter import Adapter
from bita.runtime.backends.backend import Backend, Step
from bita.runtime.backends.cache import Cache
from bita.runtime.backends.layout import prefill_layout
from bita.runtime.decoding.soundness import run_soundly
from bita.tensors import Int64Array

Tokens = Sequence[int] | Int64Array
AnyStep = TypeVar("AnyStep", bound=Step)


class Prefill(Generic[AnyStep]):
    """Appends tokens to the cached ones, in steps of at most `max_tokens`.

    bind: returns the step of a number of tokens. The step of `max_tokens` is reused.
    """

    def __init__(self, cache: Cache, max_tokens: int, bind: Callable[[int], AnyStep]) -> None:
        self.max_tokens = max_tokens
        self._cache = cache
        self._bind = bind
        self._whole: AnyStep | None = None

    def pieces(self, tokens: Tokens) -> Iterator[AnyStep]:
        """Read the tokens piece by piece; yield the step of each piece after it has run.

        The next piece overwrites a step's arrays.
        """
        for start in range(0, len(tokens), self.max_tokens):
            yield self.read(tokens[start : start + self.max_tokens])

    def read(self, tokens: Tokens) -> AnyStep:
        """Read one piece of at most `max_tokens`; return its step."""
        step = self._step(len(tokens))
        run_piece(step, self._cache, tokens)
        return step

    def _step(self, num_tokens: int) -> AnyStep:
        if num_tokens != self.max_tokens:
            return self._bind(num_tokens)
        if self._whole is None:
            self._whole = self._bind(num_tokens)
        return self._whole


def text_steps(backend: Backend, adapter: Adapter, min_rows: int) -> Callable[[int], Step]:
    """Return a function that binds the step of a number of prompt tokens.

    The steps have no mask rows and one output row each.
    """
    return lambda num_tokens: backend.bind(prefill_layout(num_tokens, 0, min_rows), adapter)


def run_piece(step: Step, cache: Cache, tokens: Tokens) -> None:
    """Run a step on these tokens, and keep the cache rows of all of them.

    Raises UnsoundError and keeps no rows if the step's logits are not finite.
    """
    step.token_ids[0, : len(tokens)] = tokens
    run_soundly(step, cache.length)
    cache.length += len(tokens)
