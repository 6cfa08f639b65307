"""Access to weights, a few rows at a time, independent of the file format."""

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
CHUNK_BYTES = 16 << 20  # in float32: large enough for full speed, small compared with any model


class TensorSource(Protocol):
    """A model's config and weights, read on demand.

    Tensor names and layouts are those of transformers (`model.layers.0.self_attn.q_proj.weight`,
    `[out_features, in_features]`), regardless of the names in the file.
    """

    config: dict[str, Any]  # `config.json` of transformers, completed by the defaults of its class

    def names(self) -> frozenset[str]:
        """Return the names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, from the header only. Raises ModelError if it is missing."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Float32Array:
        """Read rows [start, stop) along the first axis, and only these, as contiguous float32."""


def head_dim_of(config: Mapping[str, Any]) -> int:
    """Return the width of an attention head, derived from the hidden size if not given.

    Raises ModelError if the numbers needed are invalid or missing.
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
    """Yield rows [0, stop) of a tensor in order, in pieces of about `chunk_bytes`.

    None for `stop` yields all rows.
    """
    shape = source.shape(name)
    row_bytes = 4 * int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, chunk_bytes // max(1, row_bytes))
    end = shape[0] if stop is None else stop
    for start in range(0, end, step):
        yield source.read(name, start, min(start + step, end))
