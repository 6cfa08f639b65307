"""Where weights are read from, a few rows at a time, whatever the file format."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bita.errors import ModelError
from bita.json_values import Fields

FloatArray = npt.NDArray[np.floating[Any]]  # of any width
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Int8Array = npt.NDArray[np.int8]
UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MAX_HEAD_DIM = 2**16  # far more than any model has
CHUNK_BYTES = 16 << 20  # of float32: large enough for full speed, small beside any model


class TensorSource(Protocol):
    """A model's config and weights; nothing is read before it is asked for.

    config: `config.json` of transformers, with the defaults of its class for keys that it leaves
    out. Tensor names and layouts are those of transformers
    (`model.layers.0.self_attn.q_proj.weight`, `[out_features, in_features]`), whatever the file
    calls them.
    """

    config: dict[str, Any]

    def names(self) -> frozenset[str]:
        """The names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header only. Raises ModelError if it is not there."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Float32Array:
        """Rows [start, stop) along the first axis, as contiguous float32; only they are read."""


def head_dim_of(config: Mapping[str, Any]) -> int:
    """Width of an attention head, which configs may leave to the hidden size.

    Raises ModelError if the numbers that it follows from are none, or not there.
    """
    fields = Fields(config)
    head_dim = fields.whole_or_null("head_dim", None, 1, MAX_HEAD_DIM)
    if head_dim is None:
        hidden_size = fields.whole("hidden_size", least=1)
        head_dim = hidden_size // fields.whole("num_attention_heads", least=1)
        if not fields.faults and not head_dim:
            fields.faults.append("hidden_size is less than num_attention_heads")
    fields.check(ModelError, "the model's config")
    return head_dim


def row_chunks(
    source: TensorSource, name: str, stop: int | None = None, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[Float32Array]:
    """Rows [0, stop) of a tensor in order (None: all), in pieces of about `chunk_bytes`."""
    shape = source.shape(name)
    row_bytes = 4 * int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, chunk_bytes // max(1, row_bytes))
    end = shape[0] if stop is None else stop
    for start in range(0, end, step):
        yield source.read(name, start, min(start + step, end))
