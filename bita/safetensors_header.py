"""The header of a safetensors file, checked before any tensor is read.

A file consists of the length of its header (8 bytes, little endian), the header in JSON, and the
tensors without gaps: https://huggingface.co/docs/safetensors. The safetensors library makes the
same checks, but opens pipes and leaves limits to the caller.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from bita.errors import MAX_FAULTS
from bita.json_values import Fields, parse_json, shown

LENGTH_BYTES = 8
MAX_DIMENSIONS, MAX_ITEMS, MAX_NAME = 32, 1 << 48, 500  # per tensor, far above any in use
ITEM_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1, "C64": 8},
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **{f"{sign}{bits}": bits // 8 for sign in "IU" for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in the file, row-major and little endian."""

    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    start: int  # offset of the first byte in the file
    stop: int  # offset after the last byte


@dataclass(frozen=True)
class Header:
    """Content of a header."""

    metadata: Mapping[str, str]  # texts by name
    tensors: Mapping[str, TensorEntry]  # by name


def read_header(file: BinaryIO, num_bytes: int, max_header_bytes: int, max_tensors: int) -> Header:
    """Read the header of an open file of `num_bytes`, which must be at its start.

    The tensors must fill the file from the header to its end, so a truncated download is detected
    before the first tensor is read. Raises ValueError with a message of one line, and OSError.
    """
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if not 2 <= length <= num_bytes - LENGTH_BYTES:
        raise ValueError(f"its header of {length} bytes does not fit into {num_bytes} bytes")
    if length > max_header_bytes:
        raise ValueError(f"its header has {length} bytes; at most {max_header_bytes} are allowed")
    content = parse_json(file.read(length), refuses_twice=True)
    if not isinstance(content, dict):
        raise ValueError(f"its header is {shown(content)}, not an object")
    if len(content) > max_tensors:
        raise ValueError(f"it has {len(content)} tensors; at most {max_tensors} are allowed")
    if len(longest := max(content, key=len, default="")) > MAX_NAME:
        raise ValueError(
            f"a tensor's name has {len(longest)} characters; at most {MAX_NAME} are allowed"
        )
    values = Fields(content)
    metadata = values.table("__metadata__", {})
    tensors: dict[str, TensorEntry] = {}
    for name in content:
        if name != "__metadata__" and len(values.faults) < MAX_FAULTS:
            _add_tensor(values, name, LENGTH_BYTES + length, tensors)
    if values.faults:
        raise ValueError(f"its header is broken: {'; '.join(values.faults)}")
    _check_gaps(tensors, LENGTH_BYTES + length, num_bytes)
    texts = {name: text for name, text in metadata.items() if isinstance(text, str)}
    return Header(texts, tensors)


def _add_tensor(values: Fields, name: str, first: int, tensors: dict[str, TensorEntry]) -> None:
    """Add one tensor, or what is wrong with it to the faults of `values`.

    The data of the tensors begins at offset `first`.
    """
    num_before = len(values.faults)
    entry = values.inner(name)
    if len(values.faults) > num_before:
        return
    dtype, shape = entry.text("dtype"), entry.wholes("shape")
    offsets = entry.wholes("data_offsets")
    if len(values.faults) > num_before:
        return
    fault = _fault(name, dtype, shape, offsets)
    if fault is not None:
        values.faults.append(fault)
        return
    tensors[name] = TensorEntry(dtype, shape, first + offsets[0], first + offsets[1])


def _fault(name: str, dtype: str, shape: tuple[int, ...], offsets: tuple[int, ...]) -> str | None:
    """Return what is wrong with values of the right types."""
    if dtype not in ITEM_BYTES:
        return f"{name} has the unknown type {shown(dtype)}"
    if len(offsets) != 2 or len(shape) > MAX_DIMENSIONS:
        return f"{name} has {len(shape)} dimensions and {len(offsets)} offsets"
    wanted = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != wanted:
        return (
            f"{name} {shown([*shape])} {dtype} takes {shown(wanted)} bytes, but the header gives "
            f"it [{offsets[0]}, {offsets[1]})"
        )
    if math.prod(n or 1 for n in shape) >= MAX_ITEMS:  # numpy cannot make some empty arrays
        return f"{name} has the shape {shown([*shape])}, which is too large"
    return None


def _check_gaps(tensors: Mapping[str, TensorEntry], first: int, num_bytes: int) -> None:
    """Raise ValueError unless the tensors fill the file from `first` to its end."""
    end = first
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != end:
            what = "overlaps the tensor before it" if tensor.start < end else "follows a gap"
            raise ValueError(f"its header is broken: {name} {what}")
        end = tensor.stop
    if end > num_bytes:
        raise ValueError(f"it is truncated: {num_bytes} bytes of {end}")
    if end < num_bytes:
        raise ValueError(f"it has {num_bytes - end} bytes after its tensors")
