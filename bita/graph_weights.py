"""Locations of external data in an ONNX file: the files from which a graph takes its weights.

ONNX Runtime before 1.25 opens any path that is given there, in any directory, and interprets a
certain text as an address in its own memory, so the locations are checked before the file is
loaded. Only parts that may hold a location are visited (a few milliseconds for the graph of a large
model).
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

LOCATION = b"location"  # key of a tensor's entry
MAX_DEPTH = 100  # of nested messages, as in protobuf
MAX_IN_MEMORY = 16 << 20  # bytes; larger graphs, which contain their weights, are mapped
# Fields of onnx.proto that lead to tensors: kind of message, field number, kind of its content.
PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        **{5: "tensor", 10: "tensor", 6: "graph", 11: "graph"},
        **{22: "sparse tensor", 23: "sparse tensor"},
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
KEY, VALUE = 1, 2  # fields of an entry
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protobuf

Data: TypeAlias = bytes | mmap.mmap


def weight_locations(path: Path) -> set[bytes]:
    """Return every location of external data in a graph.

    Raises OSError, or ValueError if the file is not a graph as ONNX libraries write it.
    """
    if path.stat().st_size <= MAX_IN_MEMORY:
        return set(_locations(path.read_bytes()))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return set(_locations(data))


def _locations(data: Data) -> Iterator[bytes]:
    messages = [("model", 0, len(data), 0)]
    while messages:
        kind, start, end, depth = messages.pop()
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        if kind == "entry":
            yield from _values(data, start, end)
            continue
        parts = PARTS[kind]
        for field, wire_type, first, last in _fields(data, start, end):
            part = parts.get(field)
            # skip parts without the key; a location in them would contain it in one piece
            if part and wire_type == BYTES and data.find(LOCATION, first, last) >= 0:
                messages.append((part, first, last, depth + 1))


def _values(data: Data, start: int, end: int) -> Iterator[bytes]:
    """Yield all values of an entry that has the key LOCATION; readers would use the last one."""
    fields = [(field, data[first:last]) for field, _, first, last in _fields(data, start, end)]
    if (KEY, LOCATION) in fields:
        yield from (value for field, value in fields if field == VALUE)


def _fields(data: Data, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type, and start and end of the content, of each field of a message."""
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        wire_type, first = tag & 7, position
        if wire_type == BYTES:
            length, first = _varint(data, position, end)
            position = first + length
        elif wire_type == VARINT:
            position = _after_varint(data, position, end)
        elif wire_type in (FIXED64, FIXED32):
            position += 8 if wire_type == FIXED64 else 4
        else:
            raise ValueError(f"byte {position} does not start a field")
        if position > end:
            raise ValueError("it is cut off")
        yield tag >> 3, wire_type, first, position


def _varint(data: Data, position: int, end: int) -> tuple[int, int]:
    """Return a tag or a length, and the position after it.

    Encodings longer than necessary are refused: readers interpret them differently, and no library
    writes them.
    """
    if position < end and data[position] < 0x80:  # the usual case
        return data[position], position + 1
    value = shift = 0
    while position < end and shift < 35:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if value >> 32 or (byte == 0 and shift > 7):
                break
            return value, position
    raise ValueError(f"byte {position} is not part of a valid tag or length")


def _after_varint(data: Data, position: int, end: int) -> int:
    for after in range(position + 1, min(position + 10, end) + 1):
        if data[after - 1] < 0x80:
            return after
    raise ValueError(f"byte {position} does not start a number")
