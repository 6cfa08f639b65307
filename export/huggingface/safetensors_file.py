"""The header of a safetensors file, checked as strictly as the safetensors library does."""

import json
import math
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bita.json_values import Fields, shown

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_RANK = 32  # dimensions of a tensor; numpy has 64
MAX_FAULTS = 20  # of one file; those of one broken header are alike
ITEM_BYTES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1},
    **{"F8_E5M2FNUZ": 1, "F8_E4M3FNUZ": 1},
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
    num_bytes: int


def read_header(path: Path, faults: list[str]) -> dict[str, StoredTensor]:
    """The tensors of one file; what is wrong is added to `faults`.

    The data has to lie without gap or overlap up to the end of the file, so that a truncated
    download is found before the first read. Nothing but a regular file is opened.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            faults.append(f"{path.name} is not a regular file; put the weight file itself there")
            return {}
        with path.open("rb") as file:
            header, data_start = _parse(file, status.st_size)
    except OSError as error:
        faults.append(f"{path.name} cannot be read ({error.strerror or error})")
        return {}
    except ValueError as error:
        faults.append(f"{path.name} {error}; download it again")
        return {}
    header.pop("__metadata__", None)
    return _place(path, header, data_start, status.st_size, faults)


def _parse(file: BinaryIO, file_bytes: int) -> tuple[dict[str, Any], int]:
    """The header and where the data starts. Raises ValueError."""
    header_bytes = int.from_bytes(file.read(8), "little")
    if not 2 <= header_bytes <= min(file_bytes - 8, MAX_HEADER_BYTES):
        raise ValueError(
            f"is no safetensors file: its header of {header_bytes} bytes does not fit into "
            f"{file_bytes} bytes"
        )
    try:
        header = json.loads(file.read(header_bytes).decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"has a broken header ({type(error).__name__}: {error})") from error
    if not isinstance(header, dict):
        raise ValueError(f"has a broken header ({shown(header)} is not an object)")
    return header, 8 + header_bytes


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shown(name)} is there twice")
        found[name] = value
    return found


def _place(
    path: Path, header: dict[str, Any], data_start: int, file_bytes: int, faults: list[str]
) -> dict[str, StoredTensor]:
    """The tensors of a header whose data starts at `data_start`, and the faults of their places."""
    stored: dict[str, StoredTensor] = {}
    own_faults: list[str] = []
    for name, entry in header.items():
        tensor = _tensor(path, name, entry, data_start, own_faults)
        if tensor:
            stored[name] = tensor
        if len(own_faults) >= MAX_FAULTS:
            break
    if not own_faults:
        own_faults += _gaps(path, stored, data_start, file_bytes)
    faults += own_faults
    return stored


def _tensor(
    path: Path, name: str, entry: Any, data_start: int, faults: list[str]
) -> StoredTensor | None:
    if not isinstance(entry, dict):
        faults.append(f"{path.name} has a broken header ({shown(name)} is {shown(entry)})")
        return None
    fields = Fields(entry, f"{name}.")
    dtype, shape, offsets = (
        fields.text("dtype"),
        fields.wholes("shape"),
        fields.wholes("data_offsets"),
    )
    if not fields.faults and dtype not in ITEM_BYTES:
        fields.faults.append(f"{name} has the unknown type {shown(dtype)}")
    if not fields.faults and (len(offsets) != 2 or len(shape) > MAX_RANK):
        fields.faults.append(f"{name} has {len(shape)} dimensions and {len(offsets)} offsets")
    if fields.faults:
        faults += [f"{path.name} has a broken header ({fault})" for fault in fields.faults]
        return None
    (begin, end), expected = offsets, math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != expected:
        faults.append(
            f"{path.name}: {name} {list(shape)} {dtype} takes {expected} bytes, but the header "
            f"gives it [{begin}, {end}); download it again"
        )
        return None
    return StoredTensor(path, dtype, shape, data_start + begin, expected)


def _gaps(
    path: Path, stored: dict[str, StoredTensor], data_start: int, file_bytes: int
) -> list[str]:
    """Faults unless the tensors follow each other from the header to the end of the file."""
    end = data_start
    for name, tensor in sorted(
        stored.items(), key=lambda item: (item[1].offset, item[1].num_bytes)
    ):
        if tensor.offset != end:
            what = "overlaps the tensor before it" if tensor.offset < end else "follows a gap"
            return [f"{path.name} has a broken header ({name} {what}); download it again"]
        end += tensor.num_bytes
    if end > file_bytes:
        return [f"{path.name} is truncated: {file_bytes} bytes of {end}; download it again"]
    if end < file_bytes:
        return [f"{path.name} has {file_bytes - end} bytes after its tensors; download it again"]
    return []
