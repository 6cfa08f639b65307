"""Steps of several texts on the native operators, with the rows of all texts side by side.

A row's bits depend only on its own text, so each text is the same as when it is decoded alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from bita.adapter import Adapter
from bita.runtime.backends.ort_session import ort_values
from bita.runtime.backends.paged_cache import PagedCache
from bita.runtime.backends.parts import Part
from bita.runtime.backends.step_values import Arrays, IdCheck, adapter_values
from bita.tensors import Float32Array

BoolArray = npt.NDArray[np.bool_]
MIN_TEXTS, MIN_ROWS = 8, 64  # initial capacity of the buffers, which grow


class JointBackend(Protocol):
    """The part of `OrtBackend` that a joint step uses."""

    vocab_size: int
    num_ranks: int

    def known_inputs(self, arrays: Arrays) -> Arrays: ...

    def adapter_inputs(self, adapter: Adapter) -> Mapping[str, ort.OrtValue]: ...

    def new_binding(self) -> ort.IOBinding: ...

    def run(self, binding: ort.IOBinding) -> None: ...


class OrtJointStep:
    """Runs the rows of several texts at once, with one adapter.

    The caller holds the engine lock.
    """

    def __init__(self, backend: JointBackend, cache: PagedCache, adapter: Adapter) -> None:
        """`cache` may be that of any text."""
        self._backend = backend
        self._width = len(cache.text_pages)
        self._first_mask_row = np.zeros(1, np.int64)
        fixed: Arrays = {**adapter_values(adapter), "first_mask_row": self._first_mask_row}
        self._fixed = {
            **ort_values(backend.known_inputs(fixed)),
            **backend.adapter_inputs(adapter),
        }
        self._texts = _Texts(self._width, MIN_TEXTS)
        self._rows = _Rows(backend, MIN_ROWS)
        self._outputs = {False: _Outputs(backend, False), True: _Outputs(backend, True)}
        self._bindings: dict[bool, ort.IOBinding] = {}
        self._bound: dict[bool, tuple[_Rows, int, _Results]] = {}  # size-dependent values in each

    def run(self, parts: Sequence[Part], with_logits: bool = False) -> None:
        """Execute the step and set the results of each part. The slots must be reserved.

        Raises EngineError if an operator fails or returns invalid token ids.
        """
        num_rows = sum(part.num_rows for part in parts)
        num_outputs = sum(len(part.layout.output_rows) for part in parts)
        if num_rows > self._rows.size:
            self._rows = _Rows(self._backend, 2 * num_rows)
        if len(parts) > len(self._texts.lengths):
            self._texts = _Texts(self._width, 2 * len(parts))
            self._bindings.clear()
            self._bound.clear()
        outputs = self._outputs[with_logits].of(num_outputs)
        self._place(parts, num_rows)
        binding = self._binding(with_logits)
        bound = self._rows, num_rows, outputs
        if self._bound.get(with_logits) != bound:
            for name, value in self._rows.values(num_rows, num_outputs).items():
                binding.bind_ortvalue_input(name, value)
            for name, value in outputs.values.items():
                binding.bind_ortvalue_output(name, value)
            self._bound[with_logits] = bound
        self._backend.run(binding)
        outputs.check.check()
        start = 0
        for part in parts:
            stop = start + len(part.layout.output_rows)
            part.top_ids, part.top_logits = (
                outputs.top_ids[start:stop],
                outputs.top_logits[start:stop],
            )
            part.logits = None if outputs.logits is None else outputs.logits[start:stop]
            start = stop

    def _binding(self, with_logits: bool) -> ort.IOBinding:
        if with_logits not in self._bindings:
            binding = self._backend.new_binding()
            wants = self._outputs[with_logits].wants
            for name, value in {**self._fixed, **self._texts.values, **wants}.items():
                binding.bind_ortvalue_input(name, value)
            self._bindings[with_logits] = binding
        return self._bindings[with_logits]

    def _place(self, parts: Sequence[Part], num_rows: int) -> None:
        """Write the placement of all parts' rows.

        Text rows come first, beginning with the parts of one row; then come all mask rows.
        """
        rows, texts = self._rows, self._texts
        texts.lengths[: len(parts)] = [part.cache.length for part in parts]
        texts.lengths[len(parts) :] = 0
        num_texts = sum(len(part.tokens) for part in parts)
        rows.sees_prefix[:num_texts], rows.sees_prefix[num_texts:num_rows] = False, True
        self._first_mask_row[0] = num_texts
        sees = rows.sees_of(num_rows)
        sees[:] = False
        plain = [number for number, part in enumerate(parts) if part.num_rows == 1]
        text, mask, output = len(plain), num_texts, 0
        outputs: list[int] = []  # positions of the plain parts' output rows
        for number, part in enumerate(parts):
            texts.pages[number] = part.cache.text_pages
            if part.num_rows == 1:
                outputs.append(output)
                output += 1
                continue
            self._place_part(number, part, sees, text, mask, output)
            text += len(part.tokens)
            mask += part.num_rows - len(part.tokens)
            output += len(part.layout.output_rows)
        self._place_plain(parts, plain, outputs, sees)

    def _place_plain(
        self, parts: Sequence[Part], plain: list[int], outputs: list[int], sees: BoolArray
    ) -> None:
        """Place all parts of one row at once; `outputs` are their indices among the output rows."""
        rows, count = self._rows, len(plain)
        lengths = self._texts.lengths[plain]
        rows.token_ids[:count] = [int(parts[number].tokens[0]) for number in plain]
        rows.positions[:count] = lengths
        rows.row_slots[:count] = lengths
        rows.row_texts[:count] = plain
        rows.output_rows[outputs] = rows.numbers[:count]
        sees.reshape(-1)[: count * (len(sees) + 1) : len(sees) + 1] = True

    def _place_part(
        self, number: int, part: Part, sees: BoolArray, text: int, mask: int, output: int
    ) -> None:
        """Place a part of several rows.

        text, mask: its first text row and its first mask row.
        output: its first index among the output rows.
        """
        rows, layout, length = self._rows, part.layout, part.cache.length
        count, num_masks = len(part.tokens), layout.num_rows - len(part.tokens)
        own, after = slice(text, text + count), slice(mask, mask + num_masks)
        rows.token_ids[own] = part.tokens
        for at, of in ((own, slice(count)), (after, slice(count, count + num_masks))):
            rows.positions[at] = layout.offsets[of]
            rows.positions[at] += length
            rows.row_slots[at] = rows.numbers[of]
            rows.row_slots[at] += length
            rows.row_texts[at] = number
        sees[own, own] = layout.sees[:count, :count]
        if num_masks:
            rows.token_ids[after] = layout.mask_index[count:]
            rows.token_ids[after] += self._backend.vocab_size
            sees[after, own] = layout.sees[count:, :count]
            sees[after, after] = layout.sees[count:, count:]
        given = layout.output_rows
        places = given + np.where(given < count, text, mask - count)
        rows.output_rows[output : output + len(given)] = places


class _Texts:
    """Inputs of a step per text, with room for `size` texts."""

    def __init__(self, width: int, size: int) -> None:
        """`width` is the number of pages of the longest text."""
        self.lengths = np.zeros(size, np.int64)
        self.pages = np.zeros((size, width), np.int64)
        self.values = ort_values({"text_lengths": self.lengths, "text_pages": self.pages})


class _Rows:
    """Inputs of a step per row, with room for `size` rows, and OrtValues by number of rows."""

    def __init__(self, backend: JointBackend, size: int) -> None:
        self.size = size
        self._backend = backend
        self.token_ids, self.positions = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.row_slots, self.row_texts = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.output_rows = np.zeros(size, np.int64)
        self.sees_prefix = np.zeros(size, np.bool_)
        self.numbers = np.arange(size)
        self._sees = np.zeros(size * size, np.bool_)
        self._by_rows: dict[int, dict[str, ort.OrtValue]] = {}
        self._by_outputs: dict[int, dict[str, ort.OrtValue]] = {}

    def sees_of(self, num_rows: int) -> BoolArray:
        """Return `sees` of a step of `num_rows` rows, [Q, Q]."""
        return self._sees[: num_rows * num_rows].reshape(num_rows, num_rows)

    def values(self, num_rows: int, num_outputs: int) -> dict[str, ort.OrtValue]:
        """Return the inputs by their names in the graph; they share the arrays' memory."""
        if num_rows not in self._by_rows:
            self._by_rows[num_rows] = self._make_values(
                {
                    "token_ids": self.token_ids[None, :num_rows],
                    "positions": self.positions[None, :num_rows],
                    "row_slots": self.row_slots[:num_rows],
                    "row_texts": self.row_texts[:num_rows],
                    "sees": self.sees_of(num_rows),
                    "sees_prefix": self.sees_prefix[:num_rows],
                }
            )
        if num_outputs not in self._by_outputs:
            self._by_outputs[num_outputs] = self._make_values(
                {"output_rows": self.output_rows[:num_outputs]}
            )
        return {**self._by_rows[num_rows], **self._by_outputs[num_outputs]}

    def _make_values(self, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, ort.OrtValue]:
        return ort_values(self._backend.known_inputs(arrays))


class _Outputs:
    """Results of steps by number of output rows."""

    def __init__(self, backend: JointBackend, with_logits: bool) -> None:
        self._backend = backend
        self._with_logits = with_logits
        self.wants = ort_values({"wants_logits": np.array([with_logits])})
        self._memory = np.zeros(0, np.float32)  # for logits
        self._known: dict[int, _Results] = {}

    def of(self, num_outputs: int) -> "_Results":
        """Return the buffers for `num_outputs` output rows, which are created on first use."""
        if num_outputs not in self._known:
            size = num_outputs * self._backend.vocab_size if self._with_logits else 0
            if size > len(self._memory):
                self._memory = np.zeros(size, np.float32)
                self._known.clear()
            self._known[num_outputs] = _Results(self._backend, num_outputs, self._memory[:size])
        return self._known[num_outputs]


class _Results:
    """The result buffers: top_ids [R, k], top_logits [R, k], logits [R, V] or None."""

    def __init__(self, backend: JointBackend, num_outputs: int, memory: Float32Array) -> None:
        self.top_ids = np.zeros((num_outputs, backend.num_ranks), np.int64)
        self.top_logits = np.zeros((num_outputs, backend.num_ranks), np.float32)
        self.logits = memory.reshape(num_outputs, -1) if len(memory) else None
        self.check = IdCheck(self.top_ids, backend.vocab_size)
        outputs: Arrays = {"top_ids": self.top_ids, "top_logits": self.top_logits}
        if self.logits is not None:
            outputs["logits"] = self.logits
        self.values = ort_values(outputs)
