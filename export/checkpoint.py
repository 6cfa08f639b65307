"""What the exporter needs of a model's files, whatever their format."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TextAssets:
    """Everything that turns text into token ids and back.

    tokenizer_json: contents of a `tokenizer.json` of the tokenizers library.
    chat_template: Jinja source, or None for a model without one.
    eos_ids: token ids that end an answer, most usual first; never empty.
    special_tokens: `bos_token`, `eos_token`, ... as text, for chat templates.
    """

    tokenizer_json: str
    chat_template: str | None
    eos_ids: tuple[int, ...]
    special_tokens: dict[str, str] = field(default_factory=dict)


class Checkpoint(Protocol):
    """A model's weights, read one tensor (or a part of one) at a time, without torch.

    name: how a user called the model; path: where its files are; config: `config.json` of
    transformers (made from the metadata where the file has none); license: SPDX id or None.
    Tensor names and layouts are those of transformers (`model.layers.0.self_attn.q_proj.weight`,
    `[out_features, in_features]`), whatever the file calls them.
    """

    name: str
    path: Path
    config: dict[str, Any]
    license: str | None

    def names(self) -> frozenset[str]:
        """The names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header only. Raises ModelError if it is not there."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Float32Array:
        """Rows [start, stop) along the first axis, as contiguous float32; only they are read."""

    def text_assets(self) -> TextAssets:
        """The tokenizer and the chat template. Raises ModelError if there is no tokenizer."""


def row_chunks(
    checkpoint: Checkpoint, name: str, chunk_bytes: int = 64 << 20
) -> Iterator[Float32Array]:
    """All rows of a tensor in order, in pieces of about `chunk_bytes` of float32."""
    shape = checkpoint.shape(name)
    row_bytes = 4 * int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, chunk_bytes // max(1, row_bytes))
    for start in range(0, shape[0], step):
        yield checkpoint.read(name, start, min(start + step, shape[0]))
