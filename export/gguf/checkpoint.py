"""A GGUF file as a checkpoint with the tensor names, layouts and values of transformers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.errors import ModelError, raise_faults
from bita.export.block_source import BlockType
from bita.export.checkpoint import TextAssets
from bita.export.finite import check_finite
from bita.export.gguf.architectures import GgufArchitecture, architecture_of
from bita.export.gguf.config import make_config
from bita.export.gguf.file import READABLE_TYPES, GgufFile, GgufTensor, read_gguf
from bita.export.gguf.names import map_names, rope_table_of
from bita.export.gguf.tokenizer import read_gguf_text_assets
from bita.export.license import spdx_id
from bita.export.quantization.blocks import Blocks, check_blocks, has_finite_scales
from bita.export.tensor_table import RowRange, TensorTable
from bita.json_values import Fields
from bita.tensors import Float32Array

IndexArray = npt.NDArray[np.intp]
MAX_FACTORS = 1 << 16  # in a rotary table; a head has at most a few hundred
MAX_NAMED = 5  # names listed in a message
PART_NAME = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")


class GgufCheckpoint:
    """The Checkpoint of a GGUF file, or of all parts of a split one."""

    def __init__(self, path: Path, name: str | None = None, license: str | None = None) -> None:
        """Read the header.

        Args:
            path: The file; any part of a split model.
            name: The model as the user named it; None for the path.
            license: A license that takes precedence over the file's.

        Raises:
            ModelError: if the file is not supported; the error lists every fault.
        """
        self.path = path
        self.name = name or str(path)
        content = _read_parts(path)
        self.metadata = content.metadata
        self.architecture = architecture_of(str(path), self.metadata)
        family, tables = self.metadata["general.architecture"], self.architecture.rope_tables
        mapped, unknown = map_names(family, content.tensors, tables)
        raise_faults(ModelError, str(path), _tensor_faults(content, mapped, unknown))
        self._file_names = mapped
        self._stored = {ours: content.tensors[theirs] for ours, theirs in mapped.items()}
        shapes = {ours: tensor.shape for ours, tensor in self._stored.items()}
        factors = _rope_factors(str(path), content, self.architecture)
        self.config: dict[str, Any] = make_config(str(path), self.metadata, shapes, factors)
        given = self.metadata.get("general.license")
        stated = spdx_id(given) if isinstance(given, str) and given else None
        self.license = license or stated
        self._table = TensorTable(self.name, shapes, self.config)

    def names(self) -> frozenset[str]:
        return self._table.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._table.shape(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Float32Array:
        values = self._read(name, self._table.locate(name, start, stop))
        check_finite(self.name, self._name_of(name), values, start)
        return values

    def block_type(self, name: str) -> BlockType | None:
        """See `BlockSource`."""
        return self._stored[self._table.locate(name, 0, 0).source].block_type

    def read_blocks(self, name: str, start: int = 0, stop: int | None = None) -> Blocks | None:
        """See `BlockSource`.

        Raises:
            ModelError: if a weight is not finite, or float16 cannot hold a scale or minimum.
        """
        rows = self._table.locate(name, start, stop)
        tensor = self._stored[rows.source]
        permuted = self._is_permuted(name)
        first, last, order = (
            self._heads(tensor, rows) if permuted else (rows.start, rows.stop, None)
        )
        blocks = tensor.read_blocks(first, last)
        if blocks is None:
            return None
        if order is not None:
            blocks = blocks.rows(order)
        if not has_finite_scales(blocks):
            self.read(name, start, stop)  # raises an error with the first non-finite weight
            check_blocks(self._name_of(name), blocks, start)
        return blocks

    def _read(self, name: str, rows: RowRange) -> Float32Array:
        tensor = self._stored[rows.source]
        if self._is_permuted(name):
            first, last, order = self._heads(tensor, rows)
            return tensor.read(first, last)[order]
        values = tensor.read(rows.start, rows.stop)
        if self.architecture.norm_offset and name.endswith("norm.weight"):
            with np.errstate(invalid="ignore"):  # `read` refuses NaN
                values = values - np.float32(self.architecture.norm_offset)
        return values

    def _is_permuted(self, name: str) -> bool:
        return self.architecture.permuted and (".q_proj." in name or ".k_proj." in name)

    def _heads(self, tensor: GgufTensor, rows: RowRange) -> tuple[int, int, IndexArray]:
        """Return the rows [first, last) of Q or K to read for `rows`, and their order.

        A rotary embedding rotates pairs of dimensions. transformers pairs i with i + D/2, llama.cpp
        pairs 2i with 2i + 1, and its converter reorders the rows of each head accordingly. Whole
        heads are read. Raises ModelError if the tensor does not consist of heads.
        """
        head_dim = int(self.config["head_dim"])
        if tensor.shape[0] % head_dim or head_dim % 2:
            raise ModelError(
                f"{tensor.path}: {rows.source} has {tensor.shape[0]} rows, not heads of {head_dim}"
            )
        first = rows.start // head_dim * head_dim
        last = -(-rows.stop // head_dim) * head_dim
        pairs = np.arange(last - first).reshape(-1, head_dim // 2, 2)
        return first, last, pairs.swapaxes(1, 2).reshape(-1)[rows.start - first : rows.stop - first]

    def _name_of(self, name: str) -> str:
        """Return a tensor's name for messages, including its name in the file."""
        return f"{name} ({self._file_names[self._table.locate(name, 0, 0).source]})"

    def text_assets(self) -> TextAssets:
        assets = read_gguf_text_assets(str(self.path), self.metadata)
        num_tokens, num_rows = (
            len(self.metadata["tokenizer.ggml.tokens"]),
            self.config["vocab_size"],
        )
        if num_tokens > num_rows:
            raise ModelError(
                f"{self.path} has {num_tokens} tokens (tokenizer.ggml.tokens), but embeddings of "
                f"{num_rows}; use another file of the same model"
            )
        return assets


def _read_parts(path: Path) -> GgufFile:
    """Read a file, or all parts of a split one, with the metadata of the first part."""
    named = PART_NAME.fullmatch(path.name)
    if named is None:
        return _read_whole(path)
    count = int(named["count"])
    parts = [
        path.with_name(f"{named['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)
    ]
    missing = [part.name for part in parts if not part.exists()]
    if missing or not parts:
        raise ModelError(
            f"{path} is one of {count} parts; missing: {_listed(missing)}; download the missing "
            f"parts into {path.parent}"
        )
    contents = [read_gguf(part) for part in parts]
    tensors: dict[str, GgufTensor] = {}
    for part, content in zip(parts, contents, strict=True):
        twice = tensors.keys() & content.tensors.keys()
        if twice:
            raise ModelError(f"{part} has {_listed(sorted(twice))}, which another part has too")
        tensors |= content.tensors
    return GgufFile(contents[0].metadata, tensors)


def _read_whole(path: Path) -> GgufFile:
    content = read_gguf(path)
    fields = Fields(content.metadata)
    count = fields.whole("split.count", 0)
    fields.check(ModelError, str(path))
    if count > 1:
        raise ModelError(
            f"{path} is one of {count} parts (split.count), but is not named like "
            "NAME-00001-of-00002.gguf, by which its other parts are found; give all parts such "
            "names"
        )
    return content


def _tensor_faults(content: GgufFile, mapped: dict[str, str], unknown: list[str]) -> list[str]:
    architecture = content.metadata["general.architecture"]
    faults = []
    if unknown:
        faults.append(f"tensors that {architecture} should not have: {_listed(unknown)}")
    used = [*mapped.values(), *(name for name in content.tensors if rope_table_of(name))]
    types = {content.tensors[name].type_name for name in used}
    if types - set(READABLE_TYPES):
        faults.append(
            f"quantization {', '.join(sorted(types - set(READABLE_TYPES)))} is not readable "
            f"(readable: {', '.join(READABLE_TYPES)}); use another file of the same model"
        )
    return faults


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"


def _rope_factors(
    owner: str, content: GgufFile, architecture: GgufArchitecture
) -> dict[str, list[float]]:
    """Return the tables of rotary factors by name, without `.weight`.

    Files have a table for all layers, or copies of it. Raises ModelError if layers differ.
    """
    factors: dict[str, list[float]] = {}
    for name, tensor in content.tensors.items():
        table = rope_table_of(name)
        if table not in architecture.rope_tables or table is None:
            continue
        if len(tensor.shape) != 1 or tensor.shape[0] > MAX_FACTORS:
            raise ModelError(f"{owner}: {name} has the shape {list(tensor.shape)}, not [D / 2]")
        values = tensor.read(0, tensor.shape[0])
        check_finite(owner, name, values)
        if factors.setdefault(table, values.tolist()) != values.tolist():
            raise ModelError(f"{owner}: {name} differs from layer to layer; not supported")
    return factors
