"""A Hugging Face model directory with safetensors weights, read without torch or a memory map.

Plain reads of just the rows asked for keep the resident memory small: mapped pages count as the
process's own as long as the kernel keeps them.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bita.errors import ModelError, raise_faults
from bita.export.checkpoint import TextAssets
from bita.export.finite import check_finite
from bita.export.huggingface.tokenizer import read_text_assets
from bita.export.license import spdx_id
from bita.export.tensor_table import TensorTable
from bita.tensors import Float32Array

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
READABLE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
ITEM_BYTES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1},
    **{"U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4},
    **{"U64": 8, "I64": 8, "F64": 8, "C64": 8},
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `offset` bytes into the file `path`, row-major, little-endian."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class SafetensorsCheckpoint:
    """The Checkpoint of a directory with config.json and model*.safetensors."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        """Reads the headers only. Raises ModelError that lists every fault of the files."""
        self.path = path
        self.name = name or str(path)
        self.config: dict[str, Any] = read_json(path / "config.json", "the model's config")
        self.license = _license_of_readme(path / "README.md")
        faults: list[str] = []
        self._stored = _read_index(path, faults)
        faults += _quantized_faults(self._stored)
        raise_faults(ModelError, str(path), faults)
        shapes = {name: tensor.shape for name, tensor in self._stored.items()}
        self._table = TensorTable(self.name, shapes, self.config)

    def names(self) -> frozenset[str]:
        return self._table.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._table.shape(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Float32Array:
        rows = self._table.locate(name, start, stop)
        tensor = self._stored[rows.source]
        if tensor.dtype not in READABLE:
            raise ModelError(
                f"{self.name}: {name} is {tensor.dtype}; weights must be {', '.join(READABLE)}"
            )
        row_items = math.prod(tensor.shape[1:])
        dtype = np.dtype(READABLE[tensor.dtype])
        with tensor.path.open("rb") as file:
            file.seek(tensor.offset + rows.start * row_items * dtype.itemsize)
            flat = np.fromfile(file, dtype, (rows.stop - rows.start) * row_items)
        shape = (rows.stop - rows.start, *tensor.shape[1:]) if tensor.shape else ()
        values = _to_float32(flat, tensor.dtype).reshape(shape)
        check_finite(self.name, name, values, start)
        return values

    def text_assets(self) -> TextAssets:
        return read_text_assets(self.path, self.config)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file of a model directory. Raises ModelError that names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing; it holds {what}. Download the whole model directory"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ModelError(
            f"{path} holds a {type(content).__name__}, not an object; download it again"
        )
    return content


def _to_float32(flat: np.ndarray, dtype: str) -> Float32Array:
    if dtype == "BF16":  # the upper half of a float32
        return (flat.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # F64 beyond float32 is infinite, and refused
        return flat.astype(np.float32, copy=False)


def _read_index(directory: Path, faults: list[str]) -> dict[str, StoredTensor]:
    """All tensors of the directory; what is wrong is added to `faults`."""
    if not (directory / INDEX_NAME).exists():
        if not (directory / SINGLE_NAME).exists():
            faults.append(_no_weights(directory))
            return {}
        return _read_header(directory / SINGLE_NAME, faults)
    weight_map = read_json(directory / INDEX_NAME, "the list of weight files").get("weight_map", {})
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (directory / shard).exists()]
    if missing:
        faults.append(
            f"{len(missing)} of {len(shards)} weight files are missing: {', '.join(missing)}; "
            "download them into the same directory"
        )
    stored: dict[str, StoredTensor] = {}
    present = [shard for shard in shards if shard not in missing]
    for shard in present:
        stored |= _read_header(directory / shard, faults)
    absent = [n for n, shard in weight_map.items() if shard in present and n not in stored]
    if absent and not faults:
        faults.append(f"{INDEX_NAME} names tensors that no file has: {', '.join(absent[:5])}")
    return stored


def _no_weights(directory: Path) -> str:
    pickles = sorted(p.name for p in [*directory.glob("*.bin"), *directory.glob("*.pt*")])
    if pickles:
        return (
            f"the weights are Python pickles ({pickles[0]}), which can run code when loaded; "
            "convert them to safetensors: AutoModelForCausalLM.from_pretrained(DIR)"
            ".save_pretrained(NEW_DIR)"
        )
    return f"neither {SINGLE_NAME} nor {INDEX_NAME} is there; download the weights into it"


def _read_header(path: Path, faults: list[str]) -> dict[str, StoredTensor]:
    """The tensors of one file. Its size is checked against the header, so that a truncated
    download is found before the first read."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if not 2 <= header_bytes <= file_bytes - 8:
            faults.append(
                f"{path.name} is no safetensors file: its header of {header_bytes} bytes does not "
                f"fit into {file_bytes} bytes; download it again"
            )
            return {}
        try:
            header = json.loads(file.read(header_bytes))
            header.pop("__metadata__", None)
            return _place(path, header, 8 + header_bytes, file_bytes, faults)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            faults.append(f"{path.name} has a broken header ({error!r}); download it again")
    return {}


def _place(
    path: Path, header: dict[str, Any], data_start: int, file_bytes: int, faults: list[str]
) -> dict[str, StoredTensor]:
    stored = {}
    end_of_data = data_start
    for name, entry in header.items():
        dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
        begin, end = (int(offset) for offset in entry["data_offsets"])
        expected = math.prod(shape) * ITEM_BYTES.get(dtype, 0)
        if dtype in ITEM_BYTES and (end - begin != expected or begin < 0):
            faults.append(
                f"{path.name}: {name} {list(shape)} {dtype} takes {expected} bytes, but the header "
                f"gives it [{begin}, {end}); download it again"
            )
        stored[name] = StoredTensor(path, dtype, shape, data_start + begin)
        end_of_data = max(end_of_data, data_start + end)
    if end_of_data > file_bytes:
        faults.append(
            f"{path.name} is truncated: {file_bytes} bytes of {end_of_data}; download it again"
        )
    return stored


def _quantized_faults(stored: dict[str, StoredTensor]) -> list[str]:
    narrow = sorted(name for name, tensor in stored.items() if tensor.dtype.startswith("F8"))
    if not narrow:
        return []
    return [
        f"{len(narrow)} tensors are 8-bit floats ({narrow[0]} is {stored[narrow[0]].dtype}), which "
        "mean nothing without the scales of their scheme; use the model's 16-bit release"
    ]


def _license_of_readme(path: Path) -> str | None:
    """`license:` of a model card's front matter; None if there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = front and re.search(r"^license:\s*[\"']?([\w.+-]+)", front.group(1), re.MULTILINE)
    return spdx_id(found.group(1)) if found else None
