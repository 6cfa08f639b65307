"""A Hugging Face model directory with safetensors weights, read without torch or a memory map.

Plain reads of only the requested rows keep the resident memory small: mapped pages would count as
the process's own as long as the kernel keeps them.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from bita.errors import ModelError, raise_faults
from bita.export.checkpoint import TextAssets
from bita.export.finite import check_finite
from bita.export.huggingface.safetensors_file import StoredTensor
from bita.export.huggingface.tokenizer import read_text_assets
from bita.export.huggingface.weight_files import CONFIG_NAME, read_weight_files
from bita.export.license import spdx_id
from bita.export.standard_config import family_of, standard_config
from bita.export.tensor_table import TensorTable
from bita.json_values import read_json_object, read_regular_file
from bita.tensors import EMBEDDINGS, HEAD, Float32Array, row_chunks

READABLE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
MAX_README_BYTES = 4 << 20
BIASES = {
    "attention_bias": re.compile(r"self_attn\.\w+\.bias$"),
    "mlp_bias": re.compile(r"mlp\.\w+\.bias$"),
}


class SafetensorsCheckpoint:
    """The Checkpoint of a directory with config.json and model*.safetensors.

    If the config and the weights contradict each other, `config` and the names of the tensors
    follow transformers: an output layer that differs from the embeddings is not tied to them, an
    output layer equal to them is dropped, and biases that are not stored do not exist.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        """Read the headers of the files.

        The embeddings are read too if the config ties the output layer to them, but the layer is
        stored.

        Args:
            path: The directory.
            name: The model as the user named it; None for the path.

        Raises:
            ModelError: if the model cannot be read; the error lists every fault of the files.
        """
        self.path = path
        self.name = name or str(path)
        given = _read_config(path)
        self.license = _license_of_readme(path / "README.md")
        self.config, faults = standard_config(given)
        if family_of(given) is None:
            faults = []  # `read_architecture` refuses the config
        raise_faults(ModelError, str(path / CONFIG_NAME), faults)
        self._stored = read_weight_files(path, faults)
        faults += _quantized_faults(self._stored)
        raise_faults(ModelError, str(path), faults)
        if self.config.get("tie_word_embeddings") is True:
            self._resolve_tied_head()
        self._drop_absent_biases()
        self._table = self._make_table()

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
        dtype, num_items = np.dtype(READABLE[tensor.dtype]), (rows.stop - rows.start) * row_items
        try:
            with tensor.path.open("rb") as file:
                file.seek(tensor.offset + rows.start * row_items * dtype.itemsize)
                flat = np.fromfile(file, dtype, num_items)
        except OSError as error:
            raise ModelError(f"{tensor.path} cannot be read ({error})") from error
        if len(flat) != num_items:
            raise ModelError(f"{tensor.path} became shorter while it was read; download it again")
        shape = (rows.stop - rows.start, *tensor.shape[1:]) if tensor.shape else ()
        values = _to_float32(flat, tensor.dtype).reshape(shape)
        check_finite(self.name, name, values, start)
        return values

    def text_assets(self) -> TextAssets:
        return read_text_assets(self.path, self.config)

    def _make_table(self) -> TensorTable:
        shapes = {name: tensor.shape for name, tensor in self._stored.items()}
        return TensorTable(self.name, shapes, self.config)

    def _resolve_tied_head(self) -> None:
        """Resolve an output layer that is stored although the config ties it."""
        if HEAD not in self._stored:
            return
        if EMBEDDINGS not in self._stored:
            self._stored[EMBEDDINGS] = self._stored.pop(HEAD)
            return
        self._table = self._make_table()
        if self._is_same(HEAD, EMBEDDINGS):
            del self._stored[HEAD]
        else:
            self.config["tie_word_embeddings"] = False

    def _is_same(self, name: str, other: str) -> bool:
        """Return whether two tensors have the same values; read up to the first difference."""
        if self.shape(name) != self.shape(other) or not self.shape(name):
            return False
        pairs = zip(row_chunks(self, name), row_chunks(self, other), strict=True)
        return all(np.array_equal(ours, theirs) for ours, theirs in pairs)

    def _drop_absent_biases(self) -> None:
        for key, names in BIASES.items():
            if self.config.get(key) is True and not any(map(names.search, self._stored)):
                self.config[key] = False


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_NAME
    if not path.exists():
        raise ModelError(
            f"{path} is missing; it holds the model's config. Download the whole model directory"
        )
    return read_json_object(path, ModelError, "download it again")


def _to_float32(flat: np.ndarray, dtype: str) -> Float32Array:
    if dtype == "BF16":  # the upper half of a float32
        return (flat.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # F64 beyond float32 becomes infinite, and is refused
        return flat.astype(np.float32, copy=False)


def _quantized_faults(stored: dict[str, StoredTensor]) -> list[str]:
    narrow = sorted(name for name, tensor in stored.items() if tensor.dtype.startswith("F8"))
    if not narrow:
        return []
    return [
        f"{len(narrow)} tensors are 8-bit floats ({narrow[0]} is {stored[narrow[0]].dtype}), which "
        "are meaningless without the scales of their scheme; use the model's 16-bit release"
    ]


def _license_of_readme(path: Path) -> str | None:
    """Return `license:` of a model card's front matter; None if there is none."""
    try:
        text = read_regular_file(path, MAX_README_BYTES).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return None
    text = text.replace("\r\n", "\n")
    front = re.match(r"---[ \t]*\n(.*?)\n---", text, re.DOTALL)
    found = front and re.search(r"^license:[ \t]*[\"']?([\w.+-]+)", front.group(1), re.MULTILINE)
    return spdx_id(found.group(1)) if found else None
