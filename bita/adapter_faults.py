"""Checks of the shapes and values of an adapter's tensors."""

from collections.abc import Mapping, Sequence

import numpy as np

from bita.identity import ModelIdentity
from bita.lora import LORA_TENSORS, lora_faults
from bita.pairs import PAIR_TENSORS, pair_faults
from bita.tensors import Float32Array

TENSORS = ("mask_embeddings", "prefix_keys", "prefix_values")
KNOWN_TENSORS = (*TENSORS, *LORA_TENSORS, *PAIR_TENSORS)
MAX_VALUE = float(np.finfo(np.float16).max)  # for all tensors; engines also compute in float16
Shapes = Mapping[str, Sequence[int]]  # by tensor name


def shape_faults(given: Shapes, identity: ModelIdentity | None) -> list[str]:
    """Describe each shape that does not fit the identity; None leaves its dimensions free."""
    layers, heads, size, hidden = "L", "H", "D", "hidden"
    if identity:
        layers, heads = str(identity.num_layers), str(identity.num_kv_heads)
        size, hidden = str(identity.head_dim), str(identity.hidden_size)
    prefix = (layers, heads, "P", size)
    wanted = {"mask_embeddings": ("M", hidden), "prefix_keys": prefix, "prefix_values": prefix}
    shapes = {name: tuple(given[name]) for name in TENSORS if name in given}
    faults = [
        f"{name} is {list(shape)}, not [{', '.join(wanted[name])}]"
        for name, shape in shapes.items()
        if not _matches(shape, wanted[name])
    ]
    if shapes.get("mask_embeddings", (1,))[:1] == (0,):
        faults.append("mask_embeddings has no rows; at least one mask token is needed")
    keys, values = (shapes.get(name, ()) for name in TENSORS[1:])
    if not faults and keys and values and keys != values:
        faults.append(f"prefix_keys is {list(keys)}, but prefix_values is {list(values)}")
    known = (identity.num_layers, identity.hidden_size) if identity else (None, None)
    return faults + lora_faults(given, *known) + pair_faults(given, known[1])


def _matches(shape: Sequence[int], wanted: Sequence[str]) -> bool:
    """Return whether the sizes are equal; a letter or a word in `wanted` matches any size."""
    return len(shape) == len(wanted) and all(
        name.isalpha() or size == int(name) for size, name in zip(shape, wanted, strict=True)
    )


def value_faults(tensors: Mapping[str, Float32Array]) -> list[str]:
    """Describe the tensors with values that are not finite, or larger than float16 can hold."""
    faults = []
    for name, array in tensors.items():
        is_finite = np.isfinite(array)
        counts = {
            "that are not finite": int((~is_finite).sum()),
            f"beyond {MAX_VALUE:g}, the largest that float16 can hold": int(
                (is_finite & (np.abs(array) > MAX_VALUE)).sum()
            ),
        }
        faults += [
            f"{name} has {count} of {array.size} values {what}"
            for what, count in counts.items()
            if count
        ]
    return faults
