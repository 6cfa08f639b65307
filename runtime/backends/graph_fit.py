"""Check that a graph or a plan has the inputs and outputs that its engine's manifest describes.

Buffers are allocated according to the manifest and bound to the graph, so this is checked first.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from bita.dialect_spec import NATIVE
from bita.engine import NEW_ROWS, PAGE_SLOTS, SLOTS
from bita.errors import EngineError, raise_faults
from bita.lora import SITES
from bita.manifest import Manifest
from bita.packed_lora import packed_shapes

Shape: TypeAlias = Sequence[int | str]  # a name stands for any size
CACHE_TYPES = ("float32", "float16")
SMALL_INPUTS: Mapping[str, tuple[str, Shape]] = {
    "token_ids": ("int64", (1, "Q")),
    "positions": ("int64", (1, "Q")),
    "prefix_length": ("int64", (1,)),
    "sees": ("bool", ("Q", "Q")),
    "sees_prefix": ("bool", ("Q",)),
    "output_rows": ("int64", ("R",)),
    "first_mask_row": ("int64", (1,)),
}
SLOT_INPUTS: Mapping[str, tuple[str, Shape]] = {  # in graphs whose caches are rows of slots
    "cache_length": ("int64", (1,)),
    SLOTS: ("int64", ("S",)),
}
PAGE_INPUTS: Mapping[str, tuple[str, Shape]] = {  # in graphs whose caches are pages
    "row_slots": ("int64", ("Q",)),
    "row_texts": ("int64", ("Q",)),
    "text_lengths": ("int64", ("T",)),
    "text_pages": ("int64", ("T", "W")),
    "prefix_pages": ("int64", ("X",)),
    "wants_logits": ("bool", (1,)),
}
NEEDED = ("token_ids", "mask_embeddings", "output_rows")
NEEDED_PLACES = ("positions", "sees", "sees_prefix", "prefix_length")  # for native operators
CACHE_NAME = re.compile(r"(past|present)\.(0|[1-9]\d{0,8})\.(key|value|pages)")
LORA_NAME = re.compile(rf"lora\.(?:(0|[1-9]\d{{0,8}})\.)?({'|'.join(SITES)})\.(down|up)")


@dataclass(frozen=True)
class GraphValue:
    """An input or output."""

    dtype: str  # numpy's name
    shape: tuple[int | None, ...]  # None: the size is free


GraphValues = Mapping[str, GraphValue]


@dataclass(frozen=True)
class Form:
    """The differences between graphs with native operators and other graphs."""

    inputs: Mapping[str, tuple[str, Shape]]  # in addition to those that both may have
    needed: Sequence[str]  # names of required inputs
    sides: Sequence[str]  # names of a layer's caches
    cache: Shape  # shape of each cache

    @classmethod
    def of(cls, manifest: Manifest) -> "Form":
        """Return the form for the manifest's dialect."""
        _, heads, capacity, width = manifest.cache_shape
        if manifest.dialect == NATIVE.name:
            needed = (*NEEDED, *NEEDED_PLACES, *PAGE_INPUTS)
            return cls(PAGE_INPUTS, needed, ("pages",), ("pages", heads, 2, PAGE_SLOTS * width))
        return cls(SLOT_INPUTS, NEEDED, ("key", "value"), (1, heads, capacity, width))


def check_graph(path: Path, manifest: Manifest, inputs: GraphValues, outputs: GraphValues) -> None:
    """Raise EngineError that lists every difference between a graph and its manifest."""
    faults = [*_input_faults(manifest, inputs), *_output_faults(manifest, outputs)]
    kinds = {
        value.dtype
        for values in (inputs, outputs)
        for name, value in values.items()
        if CACHE_NAME.fullmatch(name) or (name == NEW_ROWS and values is outputs)
    }
    if len(kinds) > 1:
        faults.append(f"caches are of several types: {', '.join(sorted(kinds))}")
    raise_faults(EngineError, f"{path} is not what the manifest says; rebuild the engine", faults)


def _input_faults(manifest: Manifest, inputs: GraphValues) -> Iterator[str]:
    form, is_native = Form.of(manifest), manifest.dialect == NATIVE.name
    small = {**SMALL_INPUTS, **form.inputs}
    yield from (f"there is no input {name}" for name in form.needed if name not in inputs)
    yield from _layer_faults("past", form, manifest, inputs)
    has_lora = any(name.startswith("lora.") for name in inputs)
    if has_lora != (manifest.lora_rank > 0):
        there = "has" if has_lora else "has no"
        yield f"the graph {there} inputs of LoRA; lora_rank is {manifest.lora_rank}"
    for name, value in inputs.items():
        if name in small:
            dtype, shape = small[name]
            yield from _value_faults(name, value, (dtype,), shape)
        elif name == "mask_embeddings":
            yield from _value_faults(name, value, ("float32",), ("M", manifest.hidden_size))
        elif CACHE_NAME.fullmatch(name):
            yield from _value_faults(name, value, CACHE_TYPES, form.cache)
        elif (match := LORA_NAME.fullmatch(name)) and (match[1] is None) == is_native:
            if is_native:
                yield from _packed_lora_faults(name, value, match[2], match[3], manifest)
            else:
                yield from _lora_faults(name, value, int(match[1]), match[2], match[3], manifest)
        else:
            yield f"input {name!r:.60} is not known"


def _output_faults(manifest: Manifest, outputs: GraphValues) -> Iterator[str]:
    form = Form.of(manifest)
    layers, heads, _, width = manifest.cache_shape
    wanted: dict[str, tuple[Sequence[str], Shape]] = {
        "top_ids": (("int64",), ("R", manifest.num_ranks)),
        "top_logits": (("float32",), ("R", manifest.num_ranks)),
        "logits": (("float32",), ("R", manifest.vocab_size)),
    }
    if NEW_ROWS in outputs and manifest.dialect != NATIVE.name:
        wanted[NEW_ROWS] = CACHE_TYPES, (layers, heads, "Q", width)
    else:
        yield from _layer_faults("present", form, manifest, outputs)
    for name, (dtypes, shape) in wanted.items():
        if name in outputs:
            yield from _value_faults(name, outputs[name], dtypes, shape)
        else:
            yield f"there is no output {name}"
    for name, value in outputs.items():
        if CACHE_NAME.fullmatch(name):
            yield from _value_faults(name, value, CACHE_TYPES, form.cache)


def _layer_faults(time: str, form: Form, manifest: Manifest, values: GraphValues) -> Iterator[str]:
    """Yield faults unless the caches are exactly those of layers 0 to L - 1.

    time: "past" or "present".
    """
    found = [match for name in values if (match := CACHE_NAME.fullmatch(name)) and match[1] == time]
    indices = {int(match[2]) for match in found}
    of_form = all(match[3] in form.sides for match in found)
    complete = len(found) == len(form.sides) * len(indices) and indices == {*range(len(indices))}
    if not (complete and of_form) or len(indices) != manifest.num_layers:
        yield (
            f"the graph has {len(found)} {time} caches, of {len(indices)} layers; num_layers is "
            f"{manifest.num_layers}"
        )
    if not of_form:
        yield f"the {time} caches of dialect {manifest.dialect} are {' and '.join(form.sides)}"


def _lora_faults(
    name: str, value: GraphValue, layer: int, site: str, side: str, manifest: Manifest
) -> Iterator[str]:
    if layer >= manifest.num_layers:
        yield f"input {name} is for a nonexistent layer; num_layers is {manifest.num_layers}"
    hidden = manifest.hidden_size
    shape: Shape
    if side == "down":
        shape = (hidden if site in ("qkv", "gate_up") else "in", "r")
    else:
        shape = ("r", hidden if site in ("o", "down") else "out")
    yield from _value_faults(name, value, ("float32",), shape)


def _packed_lora_faults(
    name: str, value: GraphValue, site: str, side: str, manifest: Manifest
) -> Iterator[str]:
    """Yield the faults of an input with the LoRA of all layers.

    Sizes that the manifest does not have are free.
    """
    hidden = manifest.hidden_size
    shapes = packed_shapes(site, manifest.num_layers, hidden, hidden, "r")
    shape: list[int | str] = [*shapes[0 if side == "down" else 1]]
    if side == "down" and site in ("o", "down"):
        shape[2] = "in"
    elif side == "up" and site in ("qkv", "gate_up"):
        shape[1] = "tiles"
    yield from _value_faults(name, value, ("float16",), shape)


def _value_faults(
    name: str, value: GraphValue, dtypes: Sequence[str], shape: Shape
) -> Iterator[str]:
    same = len(value.shape) == len(shape) and all(
        have is None or not isinstance(want, int) or have == want
        for have, want in zip(value.shape, shape, strict=True)
    )
    if not same or value.dtype not in dtypes:
        have = ", ".join("?" if size is None else str(size) for size in value.shape)
        want = ", ".join(map(str, shape))
        yield f"{name} is {value.dtype} [{have}], not {' or '.join(dtypes)} [{want}]"
