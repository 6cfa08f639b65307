"""Several texts in one step, a row of each, on the native operators: plain decoding in bulk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.adapter import blank_adapter
from bita.errors import EngineError
from bita.identity import ModelIdentity
from bita.runtime.backends.cache import lazy_zeros
from bita.runtime.backends.layout import Layout, prefill_layout
from bita.runtime.backends.ort_backend import OrtBackend
from bita.runtime.backends.ort_session import ort_values
from bita.runtime.backends.page_pool import num_pages
from bita.runtime.backends.page_store import common_length
from bita.runtime.backends.paged_cache import PagedCache
from bita.runtime.backends.step_values import Arrays, IdCheck, step_values
from bita.tensors import Float32Array, Int64Array


@dataclass(frozen=True, eq=False)
class Results:
    """What a step gave, overwritten by the next. best_ids [R]; logits [R, V], or None."""

    best_ids: Int64Array
    logits: Float32Array | None


class TextBatch:
    """Up to `size` texts of at most `max_tokens` tokens each, which decode plainly in one step.

    A row's bits depend on its own text alone, so each text is the one that it is by itself. Texts
    have caches of their own here, beside the backend's. with_logits: steps give all logits too.
    Raises EngineError for an engine without native operators. Whoever steps holds the engine's
    lock.
    """

    def __init__(
        self,
        backend: OrtBackend,
        identity: ModelIdentity,
        size: int,
        max_tokens: int,
        with_logits: bool = False,
    ) -> None:
        if not isinstance(backend.cache, PagedCache):
            raise EngineError(
                "texts share a step in engines with native operators only; build it again with "
                "--dialect native"
            )
        self.size = size
        self._backend = backend
        self._adapter = blank_adapter(identity, 1)
        self._with_logits = with_logits
        pages = num_pages(max_tokens)
        self.max_tokens = max_tokens
        layers, _, *page = backend.cache.slab.shape
        self._slab = lazy_zeros((layers, size * pages, *page), backend.cache.dtype)
        self._lengths = np.zeros(size, np.int64)
        self._placed = ort_values(
            {
                "text_lengths": self._lengths,
                "text_pages": np.arange(size * pages).reshape(size, pages),
                "prefix_pages": np.zeros(1, np.int64),
                **{f"past.{index}.pages": layer for index, layer in enumerate(self._slab)},
            }
        )
        self._token_ids: list[list[int]] = [[] for _ in range(size)]
        self._steps: dict[int, _BatchStep] = {}

    def begin(self, place: int, token_ids: Sequence[int]) -> Results:
        """Read a text's tokens, at least one, in place of what was there; one row of results.

        What both begin with is not read again.
        """
        if not 0 < len(token_ids) < self.max_tokens:
            raise EngineError(f"{len(token_ids)} tokens do not fit {self.max_tokens} of the batch")
        known = self._token_ids[place]
        kept = common_length(known, token_ids[:-1])
        del known[kept:]
        self._lengths[place] = kept
        size = self._backend.prefill_rows
        for start in range(kept, len(token_ids), size):
            piece = token_ids[start : start + size]
            step = _BatchStep(self, prefill_layout(len(piece), 0, 1))
            results = step.run([place] * len(piece), piece, np.arange(len(piece)))
        return results

    def go_on(self, places: Sequence[int], token_ids: Sequence[int]) -> Results:
        """Append a token to each of several texts; a row of results of each."""
        count = len(places)
        if count not in self._steps:
            rows = np.arange(count)
            layout = Layout(
                np.zeros(count, np.int64), rows * 0 - 1, np.eye(count, dtype=bool), rows
            )
            self._steps[count] = _BatchStep(self, layout)
        return self._steps[count].run(places, token_ids, np.zeros(count, np.int64))


class _BatchStep:
    """A step of Q rows, R of which give tokens, with its inputs and outputs bound once."""

    def __init__(self, batch: TextBatch, layout: Layout) -> None:
        backend, num_rows, num_outputs = batch._backend, layout.num_rows, len(layout.output_rows)
        self._batch = batch
        self._token_ids = np.zeros((1, num_rows), np.int64)
        self._positions = np.zeros((1, num_rows), np.int64)
        self._row_slots = np.zeros(num_rows, np.int64)
        self._row_texts = np.zeros(num_rows, np.int64)
        top_ids = np.zeros((num_outputs, backend.num_ranks), np.int64)
        self._check = IdCheck(top_ids, backend.vocab_size)
        shape = (num_outputs, backend.vocab_size)
        logits = np.zeros(shape, np.float32) if batch._with_logits else None
        self._results = Results(top_ids[:, 0], logits)
        inputs: Arrays = {
            **step_values(layout, batch._adapter),
            "token_ids": self._token_ids,
            "positions": self._positions,
            "row_slots": self._row_slots,
            "row_texts": self._row_texts,
            "wants_logits": np.array([batch._with_logits]),
        }
        self._top_logits = np.zeros(top_ids.shape, np.float32)
        outputs: Arrays = {"top_ids": top_ids, "top_logits": self._top_logits}
        if logits is not None:
            outputs["logits"] = logits
        # The binding does not keep arrays alive; these do.
        fed = ort_values(backend.known_inputs(inputs))
        self._kept = {**fed, **backend.adapter_inputs(batch._adapter)}, ort_values(outputs)
        self._binding = backend.new_binding()
        for name, value in {**self._kept[0], **batch._placed}.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._kept[1].items():
            self._binding.bind_ortvalue_output(name, value)
        for name, value in batch._placed.items():
            if name.startswith("past."):
                self._binding.bind_ortvalue_output(name.replace("past", "present"), value)

    def run(
        self, places: Sequence[int], token_ids: Sequence[int], after: npt.NDArray[Any]
    ) -> Results:
        lengths = self._batch._lengths
        slots = lengths[places] + after
        if slots.max() >= self._batch.max_tokens:
            raise EngineError(f"a text has {self._batch.max_tokens} tokens, which fill the batch")
        self._token_ids[0], self._row_texts[:] = token_ids, places
        self._positions[0], self._row_slots[:] = slots, slots
        self._batch._backend.run(self._binding)
        self._check.check()
        if not np.isfinite(self._top_logits).all():
            raise EngineError(
                "the model's logits are not numbers: its activations overflow; build the engine "
                "with PRECISION=fp32, or from other weights"
            )
        lengths[places] = slots + 1
        for place, token_id in zip(places, token_ids, strict=True):
            self._batch._token_ids[place].append(token_id)
        return self._results
