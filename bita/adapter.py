"""The adapter: everything BiTA learns about one model, in one small safetensors file.

Mask embeddings are like rows of the embedding table, before any scale that the model applies to
them (such as Gemma's sqrt(hidden)). Prefix keys are used as stored, without rotation or k-norm.
Method: BiTA (arXiv 2401.12522), sections 3.1 and 3.2.
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

_PREFIX_SCALE = 0.02  # the authors' choice: the usual initialization of a transformer's weights
# Largest magnitude that a step reads, by tensor; tuned adapters stay below 25. Rows that do not see
# the masks and the prefix weight them with zero, and zero times infinity is NaN, so nothing may
# overflow in between: neither the scores of the prefix in float16 nor the nested sums of LoRA in
# float32. Mask embeddings are normalized before any other use, so they may be larger.
MAX_READ = {"mask_embeddings": MAX_VALUE}
MAX_READ_ELSE = 1000.0


@dataclass(frozen=True, eq=False)
class Adapter:
    """Everything that lets a model draft for itself; all arrays are float32.

    Raises:
        AdapterError: if shapes do not fit each other or the identity; it lists them all.
    """

    mask_embeddings: Float32Array  # [M, hidden]: embeddings of the mask tokens, M >= 1
    prefix_keys: Float32Array  # [L, H, P, D]: keys of the prefix; P may be 0
    prefix_values: Float32Array  # [L, H, P, D]: values of the prefix
    identity: ModelIdentity  # the model that the adapter was made for
    tuned_on: str = "untuned"  # description of the tuning text; "untuned" without any
    lora: Lora = field(default_factory=dict)  # LoRA for mask rows (`bita.lora`); empty for none
    pairs: Pairs = field(default_factory=dict)  # pair scores (`bita.pairs`); empty for none
    continuations: Continuations | None = None  # table of likely continuations; None for none
    bonuses: Bonuses = DEFAULT_BONUSES  # scores of guesses by their source (`bita.bonuses`)

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
        """Number of mask tokens, M."""
        return self.mask_embeddings.shape[0]

    @property
    def prefix_length(self) -> int:
        """Length of the prefix in cache slots, P."""
        return self.prefix_keys.shape[2]

    @property
    def lora_rank(self) -> int:
        """Rank of LoRA, r; 0 without LoRA."""
        return lora_rank(self.lora)

    @property
    def pair_rank(self) -> int:
        """Rank of the pair scores; 0 without pair scores."""
        return pair_rank(self.pairs)

    def tensors(self) -> dict[str, Float32Array]:
        """Return the arrays of floats by their names in the file."""
        return {**{name: getattr(self, name) for name in TENSORS}, **self.lora, **self.pairs}

    @cached_property
    def bounded(self) -> dict[str, Float32Array]:
        """The tensors as steps read them: clipped to MAX_READ, with 0 in place of NaN.

        Clipping keeps large values from overflowing, so that they cannot change the text.
        """
        return {
            name: _clip(array, MAX_READ.get(name, MAX_READ_ELSE))
            for name, array in self.tensors().items()
        }

    def check_fits(self, identity: ModelIdentity) -> None:
        """Check that the adapter was made for the model `identity`.

        Raises:
            AdapterError: if it was not; the message lists every difference.
        """
        raise_faults(
            AdapterError,
            f"adapter does not fit this model (adapter against model; {MAKE_ANOTHER})",
            self.identity.differences(identity),
        )

    def save(self, path: Path | str, lora_type: npt.DTypeLike = np.float32) -> None:
        """Write the adapter to `path`, atomically.

        Args:
            path: The file to write; its directory is created if it is missing.
            lora_type: Type of the LoRA tensors in the file. Native operators compute with float16.

        Raises:
            AdapterError: if a value is not finite, or larger than float16 can hold.
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
        # A single entry: safetensors writes several entries in no fixed order, and equal adapters
        # should give equal files.
        stored = {FORMAT: json.dumps(metadata, sort_keys=True)}
        lora = {name: array.astype(lora_type) for name, array in self.lora.items()}
        arrays = {**self.tensors(), **lora, **self._host_arrays()}
        write_whole(path, to_safetensors(arrays, stored))

    def _version(self) -> str:
        """Return the oldest format version that can store this adapter."""
        if self.continuations is not None:
            return TABLE_VERSION
        return FULL_VERSION if self.lora or self.pairs else PLAIN_VERSION

    def _host_arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """Return the arrays that only the host reads; they are not inputs of a step."""
        table = self.continuations.arrays() if self.continuations is not None else {}
        own = self.bonuses != DEFAULT_BONUSES
        return {**table, BONUS_TENSOR: self.bonuses.array()} if own else table

    def hash_pieces(self) -> Iterator[bytes]:
        """Yield the name and content of each tensor, ordered by name, for a hash of the adapter."""
        for name, array in sorted({**self.tensors(), **self._host_arrays()}.items()):
            yield name.encode() + array.tobytes()

    @classmethod
    def load(cls, path: Path | str) -> "Adapter":
        """Read and check an adapter file; float16 and bfloat16 are converted to float32.

        Raises:
            AdapterError: if the file is missing or broken; it names the path, every fault and the
                fix.
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
    """Create the adapter that tuning starts from.

    Every mask is the mean embedding; the prefix is small and random. Reads the whole embedding
    table, a few MB at a time. `rank` is the rank of LoRA, which adds nothing yet; 0 for no LoRA.
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
    """Create an adapter of zero masks and nothing else, for engines that only decode plainly."""
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
    """Create garbage of standard deviation `scale`; its drafts are wrong, but text must not change.

    With `lora_like`, garbage LoRA of the same sizes is included.
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


def _clip(array: Float32Array, most: float) -> Float32Array:
    """Clip to ±`most`, without a copy if no value exceeds that."""
    if not array.size or np.abs(array).max() <= most:  # false if there is a NaN
        return array
    return np.nan_to_num(array, nan=0.0, posinf=most, neginf=-most).clip(-most, most)
