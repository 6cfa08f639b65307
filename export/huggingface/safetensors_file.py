"""The index of the tensors of a safetensors file."""

import stat
from dataclasses import dataclass
from pathlib import Path

from bita.safetensors_header import read_header

MAX_HEADER_BYTES = 8 << 20  # the largest in use have 1 MB; the format allows 100 MB
MAX_TENSORS = 50_000  # each takes about 20 µs


@dataclass(frozen=True)
class StoredTensor:
    """The location of a tensor in a file: `offset` bytes into it, row-major, little-endian."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def read_tensors(path: Path, faults: list[str]) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name; add what is wrong to `faults`.

    Only regular files are opened.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            faults.append(f"{path.name} is not a regular file; put the weight file itself there")
            return {}
        with path.open("rb") as file:
            header = read_header(file, status.st_size, MAX_HEADER_BYTES, MAX_TENSORS)
    except OSError as error:
        faults.append(f"{path.name} cannot be read ({error.strerror or error})")
        return {}
    except ValueError as error:
        faults.append(f"{path.name} is not a whole safetensors file ({error}); download it again")
        return {}
    return {
        name: StoredTensor(path, entry.dtype, entry.shape, entry.start, entry.stop - entry.start)
        for name, entry in header.tensors.items()
    }
