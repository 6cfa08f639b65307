"""Input values of a step's graph, common to all backends."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.adapter import Adapter
from bita.errors import EngineError
from bita.packed_lora import packed_lora
from bita.runtime.backends.layout import Layout

Arrays = dict[str, npt.NDArray[Any]]


def step_values(layout: Layout, adapter: Adapter) -> Arrays:
    """Return the inputs that are the same in all steps of a layout, without LoRA."""
    return {**layout_values(layout), **adapter_values(adapter)}


def layout_values(layout: Layout) -> Arrays:
    """Return the inputs determined by the layout."""
    return {
        "sees": layout.sees,
        "sees_prefix": layout.sees_prefix,
        "output_rows": layout.output_rows,
        "first_mask_row": np.array([layout.first_mask_row]),
        "row_texts": np.zeros(layout.num_rows, np.int64),  # all rows belong to the same text
    }


def adapter_values(adapter: Adapter) -> Arrays:
    """Return the inputs determined by the adapter, except its LoRA."""
    return {
        "mask_embeddings": adapter.bounded["mask_embeddings"],
        "prefix_length": np.array([adapter.prefix_length]),
    }


def lora_values(shapes: Mapping[str, Sequence[int | str]], adapter: Adapter) -> Arrays:
    """Return the adapter's LoRA by the names of the graph's inputs; zeros if it has none.

    shapes: shapes of the inputs lora.{layer}.{site}.{side}, whose rank may be free or a number. An
    adapter of lower rank is padded with zeros.

    Raises EngineError if the adapter's rank is higher.
    """
    return {name: _lora_value(name, shape, adapter) for name, shape in shapes.items()}


def _lora_value(name: str, shape: Sequence[int | str], adapter: Adapter) -> npt.NDArray[Any]:
    _, index, site, side = name.split(".")
    stacked = adapter.bounded.get(f"lora_{site}_{side}")
    if stacked is None:
        return np.zeros([size if isinstance(size, int) else 1 for size in shape], np.float32)
    values: npt.NDArray[Any] = stacked[int(index)]
    missing = [
        size - have if isinstance(size, int) else 0
        for size, have in zip(shape, values.shape, strict=True)
    ]
    rank_axis = 1 if side == "down" else 0
    if min(missing) < 0 or missing[1 - rank_axis]:
        raise _lora_error(name, values.shape, shape)
    return np.pad(values, [(0, more) for more in missing]) if any(missing) else values


def packed_lora_values(shapes: Mapping[str, Sequence[int | str]], adapter: Adapter) -> Arrays:
    """Return the adapter's LoRA as native operators read it (`bita.packed_lora`).

    If the adapter has no LoRA, `first_mask_row` says that no row of a step is a mask row.

    shapes: shapes of the inputs lora.{site}.{side}, whose rank is free.

    Raises EngineError if the adapter has other sizes.
    """
    if not shapes:
        return {}
    if not adapter.lora:
        none = {
            name: np.zeros([size if isinstance(size, int) else 0 for size in shape], np.float16)
            for name, shape in shapes.items()
        }
        return {**none, "first_mask_row": np.array([np.iinfo(np.int64).max])}
    packed: Arrays = dict(packed_lora(adapter.bounded))
    for name, shape in shapes.items():
        have = packed[name].shape
        pairs = zip(shape, have, strict=True)
        if any(isinstance(size, int) and size != found for size, found in pairs):
            raise _lora_error(name, have, shape)
    return packed


def _lora_error(name: str, have: Sequence[int], shape: Sequence[int | str]) -> EngineError:
    return EngineError(
        f"the adapter's LoRA has shape {tuple(have)} for {name}, the engine was built for "
        f"{tuple(shape)}: build an engine with ADAPTER=…"
    )


FEW = 256  # up to this many results, Python's check is faster than numpy's


class IdCheck:
    """Checks that the ids in a buffer, which each step overwrites, are token ids.

    Few ids are compared in Python, since a numpy reduction takes 70 µs after a step has evicted its
    code from the processor's caches.

    top_ids: [R, k], the buffer; contiguous.
    """

    def __init__(self, top_ids: npt.NDArray[np.int64], vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._ids = top_ids.view(np.uint64)  # so that negative ids are the largest
        self._few = self._ids.data.cast("B").cast("Q") if top_ids.size <= FEW else None

    def check(self) -> None:
        """Raise EngineError if the last step returned an id outside the vocabulary."""
        largest = int(self._ids.max()) if self._few is None else max(self._few)
        if largest >= self._vocab_size:
            raise EngineError(
                f"the graph gave token id {int(np.uint64(largest).astype(np.int64))}, not one in "
                f"[0, {self._vocab_size}); rebuild the engine"
            )


def fill_masks(token_ids: npt.NDArray[np.int64], layout: Layout, vocab_size: int) -> None:
    """Write the ids of the mask tokens, which never change, into `token_ids`, [1, Q]."""
    masks = layout.mask_index >= 0
    token_ids[0, masks] = vocab_size + layout.mask_index[masks]
