"""Files of tensors in the format of safetensors, checked before an array is made.

A file has the length of its header (8 bytes, little endian), the header, which is JSON, and the
tensors without gaps: https://huggingface.co/docs/safetensors. The library reads the same, but opens
pipes, and leaves shapes and types to the caller.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.errors import BitaError
from bita.json_values import Fields, parse_json, read_regular_file, shown
from bita.tensors import Float32Array

MAX_FILE_BYTES = 8 << 30  # of an adapter or of pair tables; LoRA of a large model has 1 GB
MAX_ITEMS = 1 << 48  # of a tensor
MAX_HEADER_BYTES = 1 << 20  # ours have 2 kB
MAX_TENSORS, MAX_DIMENSIONS, MAX_NAME = 1000, 8, 200
LENGTH_BYTES = 8
ITEM_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1},
    **{f"{sign}{bits}": bits // 8 for sign in "IU" for bits in (8, 16, 32, 64)},
}
FLOATS: Mapping[str, npt.DTypeLike] = {"F32": np.float32, "F16": np.float16}
FLOAT_TYPES = (*FLOATS, "BF16")


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as it lies in a file; data: of the size that type and shape say."""

    dtype: str  # of ITEM_BYTES
    shape: tuple[int, ...]
    data: memoryview

    def array(self) -> npt.NDArray[np.floating]:
        """A view of float32 or float16; bfloat16 becomes float32. For FLOAT_TYPES only."""
        if self.dtype == "BF16":  # the upper half of float32
            halves = np.frombuffer(self.data, np.uint16).reshape(self.shape)
            return (halves.astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(self.data, FLOATS[self.dtype]).reshape(self.shape)

    def float32(self) -> Float32Array:
        """A copy in float32."""
        return self.array().astype(np.float32)


@dataclass(frozen=True, eq=False)
class TensorFile:
    """metadata: of the header, texts by name."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, StoredTensor]


def read_tensor_file(path: Path, error: type[BitaError], fix: str) -> TensorFile:
    """Read a file whole. Raises `error`, which names the file and ends with `fix`."""
    try:
        content = memoryview(read_regular_file(path, MAX_FILE_BYTES))
        header, data = _split(content)
        return _parse(header, data)
    except FileNotFoundError as cause:
        raise error(f"{path} does not exist; {fix}") from cause
    except OSError as cause:
        raise error(f"{path} cannot be read ({cause.strerror or cause}); {fix}") from cause
    except (ValueError, BitaError) as cause:
        raise error(f"{path} is not a whole safetensors file ({cause}); {fix}") from cause


def _split(content: memoryview) -> tuple[dict[str, Any], memoryview]:
    """The header's object, and the tensors. Raises ValueError."""
    num_bytes = int.from_bytes(content[:LENGTH_BYTES], "little")
    end = LENGTH_BYTES + num_bytes
    if len(content) < LENGTH_BYTES or end > len(content):
        raise ValueError(f"it ends after {len(content)} bytes, its header after {end}")
    if num_bytes > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {num_bytes} bytes, not {MAX_HEADER_BYTES} at most")
    header = parse_json(bytes(content[LENGTH_BYTES:end]))
    if not isinstance(header, dict):
        raise ValueError(f"its header is {shown(header)}, not an object")
    if len(header) > MAX_TENSORS:
        raise ValueError(f"it has {len(header)} tensors, not {MAX_TENSORS} at most")
    if len(longest := max(header, key=len, default="")) > MAX_NAME:
        raise ValueError(f"a tensor's name has {len(longest)} characters, not {MAX_NAME} at most")
    return header, content[end:]


def _parse(header: dict[str, Any], data: memoryview) -> TensorFile:
    """Raises BitaError that lists every fault of the header."""
    values = Fields(header)
    metadata = values.table("__metadata__", {})
    names = [name for name in header if name != "__metadata__"]
    placed = {name: _place(values, name) for name in names}
    if not values.faults:
        values.faults += _gaps([place for _, _, place in placed.values()], len(data))
    values.check(BitaError, "its header")
    tensors = {
        name: StoredTensor(dtype, shape, data[place[0] : place[1]])
        for name, (dtype, shape, place) in placed.items()
    }
    texts = {name: text for name, text in metadata.items() if isinstance(text, str)}
    return TensorFile(texts, tensors)


def _place(values: Fields, name: str) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """Type, shape, and first and last byte of a tensor, whose faults go to those of `values`."""
    entry = values.inner(name)
    dtype, shape = entry.text("dtype"), entry.wholes("shape")
    offsets = entry.wholes("data_offsets")
    if values.faults:
        return dtype, shape, (0, 0)
    # numpy cannot even make an empty array of some shapes
    makes_array = len(shape) <= MAX_DIMENSIONS and math.prod(n or 1 for n in shape) < MAX_ITEMS
    if len(offsets) != 2 or dtype not in ITEM_BYTES or not makes_array:
        given = f"type {shown(dtype)}, shape {shown(shape)} and offsets {shown(offsets)}"
        values.faults.append(f"tensor {shown(name)} has {given}")
        return dtype, shape, (0, 0)
    wanted = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != wanted:
        values.faults.append(
            f"tensor {shown(name)} has {offsets[1] - offsets[0]} bytes, not {shown(wanted)}"
        )
    return dtype, shape, (offsets[0], offsets[1])


def _gaps(places: list[tuple[int, int]], num_bytes: int) -> Iterator[str]:
    """Where the tensors do not follow each other from the first byte to the last."""
    after = 0
    for start, stop in sorted(places):
        if start != after:
            yield f"a tensor starts at byte {start} of the data, not at {after}"
        after = stop
    if after != num_bytes:
        yield f"the tensors end at byte {after} of {num_bytes}"
