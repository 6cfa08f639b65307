"""The GGUF container: metadata, tensor index and rows, with plain reads (no memory map).

The layout is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; versions 2 and
3 are read. `gguf.GGUFReader` is not used because it keeps several numpy objects for each token of
the vocabulary: hundreds of megabytes for 262144 tokens. The block formats come from the gguf
package.
"""

import math
import os
import stat
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from bita.errors import ModelError
from bita.export.block_source import BlockType
from bita.export.gguf.blocks import BLOCK_FORMATS, read_format
from bita.export.quantization.blocks import Blocks
from bita.json_values import Fields
from bita.tensors import Float32Array

SCALARS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i"},
    **{6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"},
}
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT, MAX_ALIGNMENT = 32, 1 << 20
# Limits of a header, far above any model in use: the largest has 0.9 million texts in 25 MB (Gemma
# 3), and models have a few thousand tensors.
MAX_HEADER_BYTES = 256 << 20
MAX_TEXTS = 2 << 20  # in all lists together
MAX_ENTRIES = 1 << 16  # of the metadata, and of the list of tensors
TYPE_NAMES = {int(kind): kind.name for kind in GGMLQuantizationType}
READABLE_TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file."""

    path: Path
    type_id: int
    shape: tuple[int, ...]  # in numpy's order, rows first
    offset: int  # in bytes

    @property
    def type_name(self) -> str:
        return TYPE_NAMES.get(self.type_id, f"type {self.type_id}")

    @property
    def row_bytes(self) -> int:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(self.type_id)]
        return self.shape[-1] // block * block_bytes

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes

    def read(self, start: int, stop: int) -> Float32Array:
        """Read rows [start, stop) as float32; a vector is read whole and then cut.

        Raises:
            ModelError: if the file has become shorter.
        """
        if start == stop:
            return np.empty((0, *self.shape[1:]), np.float32)
        is_vector = len(self.shape) == 1
        first, count = (0, 1) if is_vector else (start, stop - start)
        raw = self._raw(first * self.row_bytes, count * self.row_bytes)
        # A damaged block gives infinities or NaN; readers of weights check for them.
        with np.errstate(over="ignore", invalid="ignore"):
            values = dequantize(raw.reshape(count, -1), GGMLQuantizationType(self.type_id))
        rows = values.reshape(-1)[start:stop] if is_vector else values.reshape(count, -1)
        return np.ascontiguousarray(rows, dtype=np.float32)

    @property
    def block_type(self) -> BlockType | None:
        """The type of the blocks of `read_blocks`; None for vectors and types without blocks."""
        known = BLOCK_FORMATS.get(self.type_name) if len(self.shape) == 2 else None
        return None if known is None else known.type

    def read_blocks(self, start: int, stop: int) -> Blocks | None:
        """Read rows [start, stop) as blocks of 32; return None if `block_type` is None.

        Damaged blocks may have scales that are not finite.

        Raises:
            ModelError: if the file has become shorter.
        """
        if self.block_type is None:
            return None
        raw = self._raw(start * self.row_bytes, (stop - start) * self.row_bytes)
        return read_format(raw.reshape(stop - start, self.row_bytes), self.type_name)

    def _raw(self, start: int, num_bytes: int) -> np.ndarray:
        with self.path.open("rb") as file:
            file.seek(self.offset + start)
            raw = np.fromfile(file, np.uint8, num_bytes)
        if raw.size != num_bytes:
            raise ModelError(f"{self.path} has become shorter while it was read; download it again")
        return raw


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file."""

    metadata: dict[str, Any]  # arrays of numbers are numpy arrays, arrays of texts are lists
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Parse the header of a GGUF file.

    Memory and time are bounded by MAX_HEADER_BYTES, whatever the header claims.

    Raises:
        ModelError: if this is not a GGUF file, or part of it is missing.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelError(f"{path} is not a regular file; give the path of a .gguf file")
        with path.open("rb") as file:
            return _Parser(path, file).parse()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (struct.error, ValueError) as error:
        raise ModelError(
            f"{path} has a broken GGUF header ({error}); download the file again"
        ) from error


class _Parser:
    """Reads the header from the start, up to the limits of `take`."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.place = 0
        self.texts_left = MAX_TEXTS

    def parse(self) -> GgufFile:
        if self.file.read(4) != b"GGUF":
            raise ModelError(f"{self.path} is not a GGUF file: it does not start with 'GGUF'")
        self.place = 4
        version = self.scalar("<I")
        if version not in (2, 3):
            raise ModelError(
                f"{self.path} is GGUF version {version}, or big-endian; versions 2 and 3 in "
                "little-endian order are readable. Convert the model again with llama.cpp"
            )
        num_tensors, num_fields = self.count("tensors"), self.count("entries of metadata")
        metadata: dict[str, Any] = {}
        for _ in range(num_fields):
            key = self.name()
            if key in metadata:
                raise ValueError(f"its metadata has {key!r} twice")
            metadata[key] = self.value(key, self.scalar("<I"))
        entries = [self.tensor_info() for _ in range(num_tensors)]
        return GgufFile(metadata, self.place_tensors(entries, _alignment(str(self.path), metadata)))

    def take(self, num_bytes: int) -> bytes:
        if num_bytes > self.size - self.place:
            raise ModelError(
                f"{self.path} is truncated or damaged: its header asks for {num_bytes} bytes at "
                f"{self.place}, and the file has {self.size}; download it again"
            )
        if self.place + num_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"it has more than {MAX_HEADER_BYTES} bytes")
        self.place += num_bytes
        data = self.file.read(num_bytes)
        if len(data) != num_bytes:
            raise ValueError("the file has become shorter")
        return data

    def scalar(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def count(self, what: str) -> int:
        number: int = self.scalar("<Q")
        if number > MAX_ENTRIES:
            raise ValueError(f"it has {number} {what}; at most {MAX_ENTRIES} are read")
        return number

    def name(self) -> str:
        data = self.take(self.scalar("<Q"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"the name {data[:40]!r} is not UTF-8") from error

    def text(self) -> str:
        # Vocabularies hold arbitrary bytes; a broken sequence must not make the file unreadable.
        return self.take(self.scalar("<Q")).decode("utf-8", errors="replace")

    def value(self, key: str, type_id: int) -> Any:
        if type_id == STRING:
            return self.text()
        if type_id != ARRAY:
            return self.scalar(_code(key, type_id))
        item_type, count = self.scalar("<I"), self.scalar("<Q")
        if item_type == STRING:
            return self.text_list(key, count)
        dtype = np.dtype(_code(key, item_type))  # arrays of arrays are not used anywhere
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def text_list(self, key: str, count: int) -> list[str]:
        if count > self.texts_left:
            raise ValueError(f"{key} has {count} texts; at most {MAX_TEXTS} are read")
        self.texts_left -= count
        limit, read, place = min(self.size, MAX_HEADER_BYTES), self.file.read, self.place
        texts = []
        for _ in range(count):  # takes a third of the time of calling `text` for each
            size = int.from_bytes(read(8), "little")
            end = place + 8 + size
            if end > limit:
                self.file.seek(place)
                break
            texts.append(read(size).decode("utf-8", errors="replace"))
            place = end
        self.place = place
        if len(texts) < count:
            texts.append(self.text())  # raises the error
        if self.file.tell() != place:
            raise ValueError("the file has become shorter")
        return texts

    def tensor_info(self) -> tuple[str, int, tuple[int, ...], int]:
        name, num_dimensions = self.name(), self.scalar("<I")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"{name} has {num_dimensions} dimensions")
        shape = tuple(self.scalar("<Q") for _ in range(num_dimensions))[::-1]
        type_id, offset = self.scalar("<I"), self.scalar("<Q")
        block = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)][0] if type_id in TYPE_NAMES else 1
        if shape[-1] % block:
            raise ValueError(f"{name} has rows of {shape[-1]} values in blocks of {block}")
        if 0 in shape:
            raise ValueError(f"{name} has the shape {list(shape)}, without values")
        return name, type_id, shape, offset

    def place_tensors(
        self, entries: list[tuple[str, int, tuple[int, ...], int]], alignment: int
    ) -> dict[str, GgufTensor]:
        data_start = -(-self.place // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, type_id, shape, offset in entries:
            if name in tensors:
                raise ValueError(f"it has the tensor {name!r} twice")
            if offset % alignment:
                raise ValueError(f"{name} begins at {offset}, not at a multiple of {alignment}")
            tensors[name] = GgufTensor(self.path, type_id, shape, data_start + offset)
        self.check_places(tensors)
        return tensors

    def check_places(self, tensors: dict[str, GgufTensor]) -> None:
        """Check that tensors of known types are inside the file and do not overlap."""
        known = {name: tensor for name, tensor in tensors.items() if tensor.type_id in TYPE_NAMES}
        end = max((t.offset + t.num_bytes for t in known.values()), default=0)
        if end > self.size:
            raise ModelError(
                f"{self.path} is truncated: {self.size} bytes of {end}; download it again"
            )
        ordered = sorted(known.items(), key=lambda item: item[1].offset)
        for (name, tensor), (next_name, following) in pairwise(ordered):
            if tensor.offset + tensor.num_bytes > following.offset:
                raise ValueError(f"{name} and {next_name} overlap")


def _code(key: str, type_id: int) -> str:
    if type_id not in SCALARS:
        raise ValueError(f"{key} has values of type {type_id}, which is not one of {[*SCALARS]}")
    return SCALARS[type_id]


def _alignment(owner: str, metadata: dict[str, Any]) -> int:
    fields = Fields(metadata)
    alignment = fields.whole("general.alignment", DEFAULT_ALIGNMENT, 1, MAX_ALIGNMENT)
    fields.check(ModelError, owner)
    if alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment}, not a power of two")
    return alignment
