"""The adapter: everything BiTA learns about one model, in one small safetensors file.

Mask embeddings are rows of the embedding table, before any scale the model applies to them (such
as Gemma's sqrt(hidden)). Prefix keys are used as they are, without rotation or k-norm. Method:
BiTA (arXiv 2401.12522), sections 3.1 and 3.2.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as to_safetensors

from bita.adapter_faults import MAX_VALUE, TENSORS, shape_faults, value_faults
from bita.adapter_file import (
    FORMAT,
    FULL_VERSION,
    MAKE_ANOTHER,
    PLAIN_VERSION,
    TABLE_VERSION,
    read_adapter_file,
)
from bita.bonuses import BONUS_TENSOR, DEFAULT_BONUSES, Bonuses, bonus_faults
from bita.continuations import Continuations, continuation_faults
from bita.errors import AdapterError, raise_faults
from bita.files import write_whole
from bita.identity import ModelIdentity, identify
from bita.lora import (
    LORA_TENSORS,
    Lora,
    lora_rank,
    random_lora,
    site_sizes,
    sizes_of,
    starting_lora,
)
from bita.pairs import PAIR_TENSORS, Pairs, pair_rank
from bita.tensors import EMBEDDINGS, Float32Array, TensorSource, row_chunks

_PREFIX_SCALE = 0.02  # as the authors start it: the usual init of a transformer's weights
# Of what a step reads; tuned adapters stay below 25. Rows that do not see the masks and the prefix
# weigh them with zero, and zero times infinity is NaN, so that nothing may overflow on the way:
# scores of the prefix in float16, and sums of sums of LoRA in float32. Mask embeddings are normed
# before anything else is done with them.
MAX_READ = {"mask_embeddings": MAX_VALUE}
MAX_READ_ELSE = 1000.0


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a model needs to draft for itself; all arrays float32.

    mask_embeddings: [M, hidden], M >= 1. prefix_keys, prefix_values: [L, H, P, D], P may be 0.
    identity: the model it was made for. tuned_on: what the tuning text was, or "untuned".
    lora: what mask rows get beside the linear layers (`bita.lora`); empty for nothing.
    pairs: how drafts are scored by the token before them (`bita.pairs`); empty for none.
    continuations: what usually follows a few tokens (`bita.continuations`); None for no table.
    bonuses: how much text, table and masks say for what they guess (`bita.bonuses`).
    Raises AdapterError that lists every shape that does not fit the others or the identity.
    """

    mask_embeddings: Float32Array
    prefix_keys: Float32Array
    prefix_values: Float32Array
    identity: ModelIdentity
    tuned_on: str = "untuned"
    lora: Lora = field(default_factory=dict)
    pairs: Pairs = field(default_factory=dict)
    continuations: Continuations | None = None
    bonuses: Bonuses = DEFAULT_BONUSES

    def __post_init__(self) -> None:
        for name in TENSORS:
            array = np.ascontiguousarray(getattr(self, name), dtype=np.float32)
            object.__setattr__(self, name, array)
        for name in ("lora", "pairs"):
            given = getattr(self, name).items()
            arrays = {key: np.ascontiguousarray(array, dtype=np.float32) for key, array in given}
            object.__setattr__(self, name, arrays)
        shapes = {name: array.shape for name, array in self.tensors().items()}
        faults = shape_faults(shapes, self.identity)
        if self.continuations is not None:
            table = self.continuations
            faults += continuation_faults(table.marks, table.values, self.identity.vocab_size)
        faults += bonus_faults(self.bonuses.array())
        raise_faults(AdapterError, "adapter", faults)

    @property
    def num_masks(self) -> int:
        """M."""
        return self.mask_embeddings.shape[0]

    @property
    def prefix_length(self) -> int:
        """P."""
        return self.prefix_keys.shape[2]

    @property
    def lora_rank(self) -> int:
        """r; 0 without LoRA."""
        return lora_rank(self.lora)

    @property
    def pair_rank(self) -> int:
        """Rank of the pair scores; 0 without."""
        return pair_rank(self.pairs)

    def tensors(self) -> dict[str, Float32Array]:
        """The arrays of floats by their names in the file."""
        return {**{name: getattr(self, name) for name in TENSORS}, **self.lora, **self.pairs}

    @cached_property
    def bounded(self) -> dict[str, Float32Array]:
        """The tensors as steps read them: cut off at MAX_READ, and 0 for what is not a number.

        However large the values are, no text depends on them then.
        """
        return {
            name: _cut_off(array, MAX_READ.get(name, MAX_READ_ELSE))
            for name, array in self.tensors().items()
        }

    def check_fits(self, identity: ModelIdentity) -> None:
        """Raise AdapterError that lists every reason why the model `identity` is not ours."""
        raise_faults(
            AdapterError,
            f"adapter does not fit this model (adapter against model; {MAKE_ANOTHER})",
            self.identity.differences(identity),
        )

    def save(self, path: Path | str, lora_type: npt.DTypeLike = np.float32) -> None:
        """Write the file whole or not at all.

        lora_type: of LoRA in the file; float16 is what native operators compute with.
        Raises AdapterError if a value is not finite, or larger than float16 can hold.
        """
        path = Path(path)
        raise_faults(AdapterError, f"{path} was not written", value_faults(self.tensors()))
        metadata = {
            "format_version": self._version(),
            "identity": self.identity.to_json(),
            "num_masks": str(self.num_masks),
            "prefix_length": str(self.prefix_length),
            "tuned_on": self.tuned_on,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        # one entry: safetensors writes several in no fixed order, and equal adapters should be
        # equal files
        stored = {FORMAT: json.dumps(metadata, sort_keys=True)}
        lora = {name: array.astype(lora_type) for name, array in self.lora.items()}
        arrays = {**self.tensors(), **lora, **self._host_arrays()}
        write_whole(path, to_safetensors(arrays, stored))

    def _version(self) -> str:
        """The oldest that knows all it has."""
        if self.continuations is not None:
            return TABLE_VERSION
        return FULL_VERSION if self.lora or self.pairs else PLAIN_VERSION

    def _host_arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """What no step reads."""
        table = self.continuations.arrays() if self.continuations is not None else {}
        own = self.bonuses != DEFAULT_BONUSES
        return {**table, BONUS_TENSOR: self.bonuses.array()} if own else table

    def hash_pieces(self) -> Iterator[bytes]:
        """The name and content of each tensor, ordered by name, for a hash of the adapter."""
        for name, array in sorted({**self.tensors(), **self._host_arrays()}.items()):
            yield name.encode() + array.tobytes()

    @classmethod
    def load(cls, path: Path | str) -> "Adapter":
        """Read and check a file; float16 and bfloat16 become float32.

        Raises AdapterError that names the path, every fault of the file, and the fix.
        """
        parts = read_adapter_file(Path(path))
        tensors = parts.tensors
        lora, pairs = (
            {name: tensors.pop(name) for name in names if name in tensors}
            for names in (LORA_TENSORS, PAIR_TENSORS)
        )
        return cls(
            **tensors,
            identity=parts.identity,
            tuned_on=parts.tuned_on,
            lora=lora,
            pairs=pairs,
            continuations=parts.continuations,
            bonuses=parts.bonuses,
        )


def untuned_adapter(
    checkpoint: TensorSource,
    num_masks: int = 3,
    prefix_length: int = 0,
    seed: int = 0,
    rank: int = 0,
) -> Adapter:
    """Where tuning starts: every mask at the mean embedding, the prefix small and random.

    rank: of LoRA that adds nothing yet; 0 for none. Reads the whole embedding table, a few MB at
    a time.
    """
    identity = identify(checkpoint)
    total = np.zeros(identity.hidden_size)
    for rows in row_chunks(checkpoint, EMBEDDINGS):
        total += rows.sum(axis=0, dtype=np.float64)
    mean = (total / identity.vocab_size).astype(np.float32)
    keys, values = _random_prefix(identity, prefix_length, _PREFIX_SCALE, seed)
    lora = starting_lora(site_sizes(checkpoint), identity.num_layers, rank, seed) if rank else {}
    return Adapter(np.tile(mean, (num_masks, 1)), keys, values, identity, "untuned", lora)


def blank_adapter(identity: ModelIdentity, num_masks: int = 3) -> Adapter:
    """Masks of zeros and nothing else, for engines that only decode plainly."""
    keys, values = _random_prefix(identity, 0, 0.0, 0)
    masks = np.zeros((num_masks, identity.hidden_size), np.float32)
    return Adapter(masks, keys, values, identity, "untuned")


def random_adapter(
    identity: ModelIdentity,
    num_masks: int = 3,
    prefix_length: int = 0,
    scale: float = 1.0,
    seed: int = 0,
    lora_like: Lora | None = None,
) -> Adapter:
    """Garbage of standard deviation `scale`: its drafts are wrong, and text must not change.

    lora_like: garbage of these sizes too.
    """
    rng = np.random.default_rng(seed)
    masks = rng.normal(0, scale, (num_masks, identity.hidden_size)).astype(np.float32)
    keys, values = _random_prefix(identity, prefix_length, scale, seed + 1)
    lora = random_lora(
        sizes_of(lora_like or {}), identity.num_layers, lora_rank(lora_like or {}), scale, seed + 2
    )
    return Adapter(masks, keys, values, identity, "random", lora)


def _random_prefix(
    identity: ModelIdentity, prefix_length: int, scale: float, seed: int
) -> tuple[Float32Array, Float32Array]:
    shape = (identity.num_layers, identity.num_kv_heads, prefix_length, identity.head_dim)
    keys, values = np.random.default_rng(seed).normal(0, scale, (2, *shape)).astype(np.float32)
    return keys, values


def _cut_off(array: Float32Array, most: float) -> Float32Array:
    """The array itself if it lies within ±most."""
    if not array.size or np.abs(array).max() <= most:  # not so if a value is not a number
        return array
    return np.nan_to_num(array, nan=0.0, posinf=most, neginf=-most).clip(-most, most)
