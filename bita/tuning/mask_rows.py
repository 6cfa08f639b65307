"""Selection of the mask rows that a step trains: anchors in a text, and the masks after them.

Token indices count from the start of the text. A group anchored at index a sees tokens 0..a. Its
mask k has position a + 1 + k, is taught by the base's row a + 1 + k, and drafts token a + 2 + k.
Source: BiTA (arXiv 2401.12522), training; anchors anywhere: `docs/LOG.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bita.tensors import BoolArray, Int64Array
from bita.tuning.settings import TuneSettings


@dataclass(frozen=True, eq=False)
class MaskRows:
    """R mask rows of one text, group by group."""

    anchors: Int64Array  # [R]: anchor a of each row
    masks: Int64Array  # [R]: mask k of each row

    @property
    def positions(self) -> Int64Array:
        """Position of each row [R], which is also the index of the base's row that teaches it."""
        return self.anchors + 1 + self.masks

    @property
    def labels(self) -> Int64Array:
        """Index of the token that each row drafts, [R]."""
        return self.anchors + 2 + self.masks


def choose_rows(
    num_prompt: int, num_tokens: int, settings: TuneSettings, rng: np.random.Generator
) -> MaskRows:
    """Choose the rows of one text for one step; none if the response is too short.

    Anchors range from the last of the `num_prompt` tokens, after which a prefill has its group, to
    the third last of the `num_tokens` tokens.
    """
    first, last = max(num_prompt - 1, 0), num_tokens - 3
    candidates = np.arange(first, last + 1)
    if settings.anchors == "consecutive":
        begin = int(rng.integers(max(1, len(candidates) - settings.num_anchors + 1)))
        anchors = candidates[begin : begin + settings.num_anchors]
    else:
        chosen = rng.permutation(len(candidates))[: settings.num_anchors]
        anchors = candidates[np.sort(chosen)]
    depths = _draw_depths(len(anchors), settings, rng)
    return rows_after(anchors, np.minimum(depths, num_tokens - 2 - anchors))


def all_rows(num_prompt: int, num_tokens: int, num_masks: int) -> MaskRows:
    """Return every group of a response, for evaluation, including partial ones at its end."""
    anchors = np.arange(max(num_prompt - 1, 0), max(num_tokens - 2, 0))
    return rows_after(anchors, np.minimum(num_masks, num_tokens - 2 - anchors))


def rows_after(anchors: Int64Array, depths: Int64Array) -> MaskRows:
    """Return the rows of `depths[i]` masks after each `anchors[i]`."""
    masks = [np.arange(depth) for depth in depths]
    return MaskRows(
        np.repeat(anchors, depths).astype(np.int64),
        np.concatenate([np.zeros(0, np.int64), *masks]).astype(np.int64),
    )


def _draw_depths(count: int, settings: TuneSettings, rng: np.random.Generator) -> Int64Array:
    """Draw how many masks each group keeps: mask k + 1 is kept with probability `keep_far`."""
    kept = rng.random((count, settings.num_masks - 1)) < settings.keep_far
    return 1 + np.cumprod(kept, axis=1).sum(axis=1).astype(np.int64)


def visibility(
    rows: Sequence[MaskRows], num_rows: int, num_tokens: int, prefix_length: int, window: int | None
) -> BoolArray:
    """Return which mask row sees which key, [B, num_rows, P + num_tokens + num_rows].

    `rows` are those of each text in the batch. Padding rows of a text see only themselves, so that
    their softmax is defined. A window hides text `window` or more positions back.
    """
    sees = np.zeros((len(rows), num_rows, prefix_length + num_tokens + num_rows), np.bool_)
    tokens = np.arange(num_tokens)
    sees[:, np.arange(num_rows), prefix_length + num_tokens + np.arange(num_rows)] = True
    for block, text in zip(sees, rows, strict=True):
        count = len(text.anchors)
        same_group = text.anchors[:, None] == text.anchors[None]
        earlier = text.masks[:, None] >= text.masks[None]
        visible = tokens[None] <= text.anchors[:, None]
        if window is not None:
            visible &= text.positions[:, None] - tokens[None] < window
        block[:count, :prefix_length] = True
        block[:count, prefix_length : prefix_length + num_tokens] = visible
        start = prefix_length + num_tokens
        block[:count, start : start + count] = same_group & earlier
    return sees
