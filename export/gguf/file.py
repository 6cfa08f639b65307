"""The GGUF container: metadata, tensor index and rows, with plain reads (no memory map).

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
`gguf.GGUFReader` is not used because it keeps several numpy objects per token of the vocabulary:
hundreds of megabytes for 262144 tokens. The block formats come from the gguf package.
"""

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from bita.errors import ModelError
from bita.tensors import Float32Array

SCALARS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i"},
    **{6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"},
}
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4
TYPE_NAMES = {int(kind): kind.name for kind in GGMLQuantizationType}
READABLE_TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file: `offset` bytes into `path`; shape in numpy's order (rows first)."""

    path: Path
    type_id: int
    shape: tuple[int, ...]
    offset: int

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
        """Rows [start, stop) as float32; a vector is read whole and then cut."""
        if start == stop:
            return np.empty((0, *self.shape[1:]), np.float32)
        is_vector = len(self.shape) == 1
        first, count = (0, 1) if is_vector else (start, stop - start)
        with self.path.open("rb") as file:
            file.seek(self.offset + first * self.row_bytes)
            raw = np.fromfile(file, np.uint8, count * self.row_bytes)
        values = dequantize(raw.reshape(count, -1), GGMLQuantizationType(self.type_id))
        rows = values.reshape(-1)[start:stop] if is_vector else values.reshape(count, -1)
        return np.ascontiguousarray(rows, dtype=np.float32)


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says of itself; arrays of numbers are numpy arrays, others lists."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Parse the header. Raises ModelError if this is no GGUF file or a part of it is missing."""
    try:
        with path.open("rb") as file:
            return _Parser(path, file).parse()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except (struct.error, UnicodeDecodeError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path} has a broken GGUF header ({error}); download the file again"
        ) from error


class _Parser:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = os.fstat(file.fileno()).st_size

    def parse(self) -> GgufFile:
        if self.file.read(4) != b"GGUF":
            raise ModelError(f"{self.path} is no GGUF file: it does not start with 'GGUF'")
        version = self.scalar("<I")
        if version not in (2, 3):
            raise ModelError(
                f"{self.path} is GGUF version {version}, or big-endian; versions 2 and 3 in "
                "little-endian order are readable. Convert the model again with llama.cpp"
            )
        num_tensors, num_fields = self.scalar("<Q"), self.scalar("<Q")
        metadata = {}
        for _ in range(num_fields):
            key = self.string()
            metadata[key] = self.value(self.scalar("<I"))
        entries = [self.tensor_info() for _ in range(num_tensors)]
        return GgufFile(metadata, self.place(entries, int(metadata.get("general.alignment", 32))))

    def take(self, num_bytes: int) -> bytes:
        if num_bytes > self.size - self.file.tell():
            raise ModelError(
                f"{self.path} is truncated or damaged: its header asks for {num_bytes} bytes at "
                f"{self.file.tell()}, and the file has {self.size}; download it again"
            )
        return self.file.read(num_bytes)

    def scalar(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        # Vocabularies hold arbitrary bytes; a broken sequence must not make the file unreadable.
        return self.take(self.scalar("<Q")).decode("utf-8", errors="replace")

    def value(self, type_id: int) -> Any:
        if type_id == STRING:
            return self.string()
        if type_id != ARRAY:
            return self.scalar(SCALARS[type_id])
        item_type, count = self.scalar("<I"), self.scalar("<Q")
        if item_type in SCALARS:
            dtype = np.dtype(SCALARS[item_type])
            return np.frombuffer(self.take(count * dtype.itemsize), dtype)
        return [self.value(item_type) for _ in range(count)]

    def tensor_info(self) -> tuple[str, int, tuple[int, ...], int]:
        name, num_dimensions = self.string(), self.scalar("<I")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"{name} has {num_dimensions} dimensions")
        shape = tuple(self.scalar("<Q") for _ in range(num_dimensions))[::-1]
        type_id, offset = self.scalar("<I"), self.scalar("<Q")
        block = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)][0] if type_id in TYPE_NAMES else 1
        if shape[-1] % block:
            raise ValueError(f"{name} has rows of {shape[-1]} values in blocks of {block}")
        return name, type_id, shape, offset

    def place(
        self, entries: list[tuple[str, int, tuple[int, ...], int]], alignment: int
    ) -> dict[str, GgufTensor]:
        data_start = -(-self.file.tell() // alignment) * alignment
        tensors = {
            name: GgufTensor(self.path, type_id, shape, data_start + offset)
            for name, type_id, shape, offset in entries
        }
        ends = [t.offset + t.num_bytes for t in tensors.values() if t.type_name in READABLE_TYPES]
        expected = max(ends, default=0)
        if expected > self.size:
            raise ModelError(
                f"{self.path} is truncated: {self.size} bytes of {expected}; download it again"
            )
        return tensors
