"""GGUF files with arbitrary metadata, valid or not."""

import random
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = 4, 5, 6, 7, 8, 9, 10, 11, 12
CODES = {
    UINT32: "<I",
    INT32: "<i",
    FLOAT32: "<f",
    BOOL: "<?",
    UINT64: "<Q",
    INT64: "<q",
    FLOAT64: "<d",
}
ALIGNMENT = 32


def gguf_bytes(
    metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray], rng: random.Random
) -> bytes:
    """Return a GGUF file with float32 tensors; `rng` chooses among the types that fit a number."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        type_id, data = _encode_value(value, rng)
        head += _encode_string(key) + struct.pack("<I", type_id) + data
    data = b""
    for name, array in tensors.items():
        shape = array.shape[::-1]
        head += _encode_string(name) + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data)
        )
        data += array.astype("<f4").tobytes()
        data += bytes(-len(data) % ALIGNMENT)
    return head + bytes(-len(head) % ALIGNMENT) + data


def _encode_string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _encode_value(value: Any, rng: random.Random) -> tuple[int, bytes]:
    """Return a value's type and bytes; null and objects, which GGUF lacks, become strings."""
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, (int, float)):
        return _encode_number(value, rng)
    if isinstance(value, list):
        items = [_encode_value(item, rng) for item in value]
        type_id = items[0][0] if items else rng.choice((UINT32, STRING, ARRAY, 99))
        same = [data for kind, data in items if kind == type_id]
        return ARRAY, struct.pack("<IQ", type_id, len(same)) + b"".join(same)
    return STRING, _encode_string(value if isinstance(value, str) else str(value))


def _encode_number(value: float, rng: random.Random) -> tuple[int, bytes]:
    kinds = (UINT32, INT32, UINT64, INT64) if isinstance(value, int) else (FLOAT32, FLOAT64)
    fitting = []
    for kind in (*kinds, FLOAT64):
        try:
            fitting.append((kind, struct.pack(CODES[kind], value)))
        except (struct.error, OverflowError):
            continue
    if not fitting:
        return STRING, _encode_string(str(value))
    return fitting[0] if rng.random() < 0.8 else rng.choice(fitting)
