"""Reading and checking of adapter files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bita.adapter_faults import KNOWN_TENSORS, TENSORS, Shapes, shape_faults, value_faults
from bita.bonuses import BONUS_TENSOR, DEFAULT_BONUSES, Bonuses, bonus_faults
from bita.continuations import (
    CONTINUATION_TENSORS,
    KEYED_TENSORS,
    Continuations,
    continuation_faults,
    keyed_continuations,
)
from bita.errors import AdapterError, ModelError, raise_faults
from bita.identity import ModelIdentity
from bita.json_values import Fields, parse_json, shown
from bita.tensor_file import FLOAT_TYPES, StoredTensor, read_tensor_file
from bita.tensors import Float32Array

FORMAT = "bita-adapter"
# Each version adds tensors that older readers must refuse: LoRA and pair scores, then a table of
# continuations with keys, then one with marks.
PLAIN_VERSION, FULL_VERSION, KEYED_VERSION, TABLE_VERSION = "1", "2", "3", "4"
VERSIONS = (PLAIN_VERSION, FULL_VERSION, KEYED_VERSION, TABLE_VERSION)
METADATA = ("format_version", "identity", "num_masks", "prefix_length", "tuned_on")
MAKE_ANOTHER = "use the adapter tuned for this model, or tune one"


@dataclass(frozen=True)
class AdapterParts:
    """The content of an adapter file."""

    tensors: dict[str, Float32Array]  # by name, out of KNOWN_TENSORS
    identity: ModelIdentity
    tuned_on: str
    continuations: Continuations | None
    bonuses: Bonuses


def read_adapter_file(path: Path) -> AdapterParts:
    """Read and check an adapter file; float16 and bfloat16 are converted to float32.

    Raises:
        AdapterError: if the file is missing or broken; it names the path, every fault and the fix.
    """
    file = read_tensor_file(path, AdapterError, "copy or download it again")
    metadata = _read_metadata(path, file.metadata)
    identity, faults = _check_metadata(metadata)
    stored = {name: file.tensors[name] for name in KNOWN_TENSORS if name in file.tensors}
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    faults += _type_faults(stored) + shape_faults(shapes, identity)
    faults += _count_faults(shapes, metadata)
    tensors = {
        name: tensor.float32() for name, tensor in stored.items() if tensor.dtype in FLOAT_TYPES
    }
    faults += value_faults(tensors)
    continuations = _read_continuations(file.tensors, identity, faults)
    bonuses = _read_bonuses(file.tensors, faults)
    raise_faults(AdapterError, f"{path} is broken ({MAKE_ANOTHER})", faults)
    assert identity is not None  # otherwise it is among the faults
    return AdapterParts(tensors, identity, metadata["tuned_on"], continuations, bonuses)


def _read_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the adapter's part of a file's metadata. Raises AdapterError if there is none."""
    try:
        stated = parse_json(metadata.get(FORMAT, "{}"))
    except ValueError:
        stated = None
    if not stated or not isinstance(stated, dict):
        raise AdapterError(
            f"{path} is a safetensors file but not an adapter: its metadata has no {FORMAT!r}; "
            f"{MAKE_ANOTHER}"
        )
    values = Fields(stated, "metadata ")
    texts = {name: values.text(name) for name in METADATA if name in values}
    values.check(AdapterError, f"{path} is broken ({MAKE_ANOTHER})")
    return texts


def _check_metadata(metadata: Mapping[str, str]) -> tuple[ModelIdentity | None, list[str]]:
    faults = [f"metadata has no {key!r}" for key in METADATA if key not in metadata]
    version = metadata.get("format_version", PLAIN_VERSION)
    if version not in VERSIONS:
        known = ", ".join(map(repr, VERSIONS))
        faults.append(
            f"format_version is {shown(version)}, this bita-edge reads {known}: upgrade it"
        )
    identity = None
    try:
        identity = ModelIdentity.from_json(metadata["identity"]) if "identity" in metadata else None
    except ModelError as error:
        faults.append(str(error))
    return identity, faults


def _read_continuations(
    stored: Mapping[str, StoredTensor], identity: ModelIdentity | None, faults: list[str]
) -> Continuations | None:
    """Return the table in a file, or None if there is none; append what is wrong to `faults`."""
    has_keys = KEYED_TENSORS[0] in stored
    names = KEYED_TENSORS if has_keys else CONTINUATION_TENSORS
    present = [stored[name] for name in names if name in stored]
    if not present or identity is None:
        return None
    types = [tensor.dtype for tensor in present]
    if types != (["U64", "U32"] if has_keys else ["U16", "U32"]):
        faults.append(
            f"the table of continuations has the types {', '.join(types)}, not U16 (marks) or U64 "
            "(keys) and U32"
        )
        return None
    first, values = (tensor.wholes() for tensor in present)
    if has_keys and first.ndim == 1 and first.shape == values.shape:
        table = keyed_continuations(first.astype(np.uint64), values.astype(np.uint32))
    else:
        table = Continuations(first.astype(np.uint16), values.astype(np.uint32))
    found = continuation_faults(table.marks, table.values, identity.vocab_size)
    faults += found
    return None if found else table


def _read_bonuses(stored: Mapping[str, StoredTensor], faults: list[str]) -> Bonuses:
    """Return the bonuses in a file, or the default ones; append what is wrong to `faults`."""
    if BONUS_TENSOR not in stored:
        return DEFAULT_BONUSES
    tensor = stored[BONUS_TENSOR]
    if tensor.dtype not in FLOAT_TYPES:
        known = ", ".join(FLOAT_TYPES)
        faults.append(f"tensor {BONUS_TENSOR!r} has type {tensor.dtype}, not one of {known}")
        return DEFAULT_BONUSES
    array = tensor.float32()
    found = bonus_faults(array)
    faults += found
    return DEFAULT_BONUSES if found else Bonuses.of(array)


def _type_faults(stored: Mapping[str, StoredTensor]) -> list[str]:
    """Describe tensors that are missing, or of a type that cannot be converted to float32."""
    known = ", ".join(FLOAT_TYPES)
    faults = [f"tensor {name!r} is missing" for name in TENSORS if name not in stored]
    return faults + [
        f"tensor {name!r} has type {tensor.dtype}, not one of {known}"
        for name, tensor in stored.items()
        if tensor.dtype not in FLOAT_TYPES
    ]


def _count_faults(shapes: Shapes, metadata: Mapping[str, str]) -> list[str]:
    """Describe counts in the metadata that differ from those of the tensors."""
    stated = {"num_masks": ("mask_embeddings", 0), "prefix_length": ("prefix_keys", 2)}
    faults = []
    for key, (name, axis) in stated.items():
        shape = shapes.get(name, ())
        if key in metadata and axis < len(shape) and metadata[key] != str(shape[axis]):
            faults.append(f"metadata {key} is {shown(metadata[key])}, {name} has {shape[axis]}")
    return faults
