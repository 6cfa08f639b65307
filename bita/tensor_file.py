"""Small safetensors files that are read as a whole: adapters and pair tables."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bita.errors import BitaError
from bita.json_values import read_regular_file
from bita.safetensors_header import read_header
from bita.tensors import Float32Array

MAX_FILE_BYTES = 8 << 30  # LoRA of a large model has 1 GB
MAX_HEADER_BYTES, MAX_TENSORS = 1 << 20, 1000  # headers written by bita-edge have 2 kB
FLOATS: Mapping[str, npt.DTypeLike] = {"F32": np.float32, "F16": np.float16}
FLOAT_TYPES = (*FLOATS, "BF16")
WHOLES: Mapping[str, npt.DTypeLike] = {"U16": np.uint16, "U32": np.uint32, "U64": np.uint64}


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as stored in a file."""

    dtype: str  # a key of `safetensors_header.ITEM_BYTES`
    shape: tuple[int, ...]
    data: memoryview  # as many bytes as type and shape require

    def array(self) -> npt.NDArray[np.floating]:
        """Return a view of float32 or float16, or bfloat16 converted to float32.

        The type must be one of FLOAT_TYPES.
        """
        if self.dtype == "BF16":  # the upper half of float32
            halves = np.frombuffer(self.data, np.uint16).reshape(self.shape)
            return (halves.astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(self.data, FLOATS[self.dtype]).reshape(self.shape)

    def wholes(self) -> npt.NDArray[np.unsignedinteger]:
        """Return a view of unsigned integers; the type must be one of WHOLES."""
        return np.frombuffer(self.data, WHOLES[self.dtype]).reshape(self.shape)

    def float32(self) -> Float32Array:
        """Return a copy in float32."""
        return self.array().astype(np.float32)


@dataclass(frozen=True, eq=False)
class TensorFile:
    """Content of a file."""

    metadata: Mapping[str, str]  # the header's texts by name
    tensors: Mapping[str, StoredTensor]  # by name


def read_tensor_file(path: Path, error: type[BitaError], fix: str) -> TensorFile:
    """Read a whole file. Raises `error`, which names the file and ends with `fix`."""
    try:
        content = read_regular_file(path, MAX_FILE_BYTES)
        header = read_header(io.BytesIO(content), len(content), MAX_HEADER_BYTES, MAX_TENSORS)
    except FileNotFoundError as cause:
        raise error(f"{path} does not exist; {fix}") from cause
    except OSError as cause:
        raise error(f"{path} cannot be read ({cause.strerror or cause}); {fix}") from cause
    except ValueError as cause:
        raise error(f"{path} is not a whole safetensors file ({cause}); {fix}") from cause
    data = memoryview(content)
    tensors = {
        name: StoredTensor(entry.dtype, entry.shape, data[entry.start : entry.stop])
        for name, entry in header.tensors.items()
    }
    return TensorFile(header.metadata, tensors)
