"""A GGUF file as a checkpoint with the names, layouts and values of transformers."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from bita.errors import ModelError, raise_faults
from bita.export.checkpoint import TextAssets
from bita.export.gguf.config import architecture_of, make_config
from bita.export.gguf.file import READABLE_TYPES, GgufFile, GgufTensor, read_gguf
from bita.export.gguf.names import map_names
from bita.export.gguf.tokenizer import read_gguf_text_assets
from bita.export.license import spdx_id
from bita.export.tensor_table import RowRange, TensorTable
from bita.tensors import Float32Array

ROPE_FACTORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")
PART_NAME = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")


class GgufCheckpoint:
    """The Checkpoint of a GGUF file, or of all parts of a split one."""

    def __init__(self, path: Path, name: str | None = None, license: str | None = None) -> None:
        """Reads the header only. Raises ModelError that lists every fault of the file.

        path: the file; any part of a split model. license: known better than the file says it.
        """
        self.path = path
        self.name = name or str(path)
        content = _read_parts(path)
        self.metadata = content.metadata
        self.architecture = architecture_of(str(path), self.metadata)
        mapped, unknown = map_names(str(self.metadata["general.architecture"]), content.tensors)
        raise_faults(ModelError, str(path), _tensor_faults(content, mapped, unknown))
        self._stored = {ours: content.tensors[theirs] for ours, theirs in mapped.items()}
        shapes = {ours: tensor.shape for ours, tensor in self._stored.items()}
        factors = _rope_factors(content)
        self.config: dict[str, Any] = make_config(str(path), self.metadata, shapes, factors)
        given = self.metadata.get("general.license")
        self.license = license or (spdx_id(given) if given else None)
        self._table = TensorTable(self.name, shapes, self.config)

    def names(self) -> frozenset[str]:
        return self._table.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._table.shape(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Float32Array:
        rows = self._table.locate(name, start, stop)
        tensor = self._stored[rows.source]
        if self.architecture.permuted and ".q_proj." in name:
            return _read_permuted(tensor, rows, int(self.config["num_attention_heads"]))
        if self.architecture.permuted and ".k_proj." in name:
            return _read_permuted(tensor, rows, int(self.config["num_key_value_heads"]))
        values = tensor.read(rows.start, rows.stop)
        if self.architecture.norm_offset and name.endswith("norm.weight"):
            values = values - np.float32(self.architecture.norm_offset)
        return values

    def text_assets(self) -> TextAssets:
        return read_gguf_text_assets(str(self.path), self.metadata)


def _read_parts(path: Path) -> GgufFile:
    """One file, or the parts of a split one put together; the metadata is that of the first."""
    named = PART_NAME.fullmatch(path.name)
    if named is None:
        return read_gguf(path)
    count = int(named["count"])
    parts = [
        path.with_name(f"{named['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)
    ]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        raise ModelError(
            f"{path} is one of {count} parts and {', '.join(missing)} not there; "
            f"download the missing parts into {path.parent}"
        )
    contents = [read_gguf(part) for part in parts]
    tensors = {name: tensor for content in contents for name, tensor in content.tensors.items()}
    return GgufFile(contents[0].metadata, tensors)


def _tensor_faults(content: GgufFile, mapped: dict[str, str], unknown: list[str]) -> list[str]:
    architecture = content.metadata["general.architecture"]
    faults = []
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        faults.append(
            f"tensors that {architecture} should not have: {', '.join(unknown[:5])}{more}"
        )
    types = {content.tensors[name].type_name for name in mapped.values()}
    if types - set(READABLE_TYPES):
        faults.append(
            f"quantization {', '.join(sorted(types - set(READABLE_TYPES)))} is not readable "
            f"(readable: {', '.join(READABLE_TYPES)}); use another file of the same model"
        )
    return faults


def _rope_factors(content: GgufFile) -> dict[str, list[float]]:
    """The tables of rotary factors by name, without their `.weight`."""
    factors = {}
    for name in ROPE_FACTORS:
        stored = [content.tensors.get(f"{prefix}{name}.weight") for prefix in ("", "blk.0.")]
        for tensor in filter(None, stored):
            factors[name] = tensor.read(0, tensor.shape[0]).tolist()
    return factors


def _read_permuted(tensor: GgufTensor, rows: RowRange, num_heads: int) -> Float32Array:
    """Rows of Q or K in the order of transformers.

    A rotary embedding turns pairs of dimensions. transformers pairs i with i + D/2, llama.cpp 2i
    with 2i + 1, and its converter reorders the rows of each head for that. Whole heads are read.
    """
    head_dim = tensor.shape[0] // num_heads
    first, last = rows.start // head_dim, -(-rows.stop // head_dim)
    values = tensor.read(first * head_dim, last * head_dim)
    pairs = values.reshape(last - first, head_dim // 2, 2, *values.shape[1:])
    heads = pairs.swapaxes(1, 2).reshape(values.shape)
    begin = rows.start - first * head_dim
    return np.ascontiguousarray(heads[begin : begin + rows.stop - rows.start])
