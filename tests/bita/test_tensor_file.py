"""Tensor files of the safetensors library are read exactly; files that it refuses are refused."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from deadlines import stopped_if_it_hangs
from engine_edits import copy_engine, edit_files, edit_manifest, give_pairs
from safetensors.numpy import save

from bita.adapter import Adapter
from bita.errors import AdapterError, BitaError, EngineError
from bita.runtime.session import Session
from bita.tensor_file import read_tensor_file

ARRAYS: dict[str, np.ndarray] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.float16),
    "none": np.zeros((2, 0, 3), np.float32),
    "one": np.array(3.0, np.float32),
}


class FileError(BitaError):
    pass


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_files_of_the_library_are_read_exactly(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(save(ARRAYS, {"made": "here"}))
    file = read_tensor_file(path, FileError, "fix it")
    assert file.metadata == {"made": "here"}
    assert file.tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(file.tensors[name].array(), array)
        assert file.tensors[name].array().dtype == array.dtype
        assert file.tensors[name].float32().dtype == np.float32


def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    path = tmp_path / "t"
    halves = np.array([0x3F80, 0xC000], np.uint16).tobytes()
    path.write_bytes(file_of({"x": entry("BF16", [2], [0, 4])}, halves))
    assert read_tensor_file(path, FileError, "").tensors["x"].array().tolist() == [1.0, -2.0]


BROKEN = {
    "nothing": b"",
    "no header": b"\x01",
    "a header of 10 GB": file_of({}, length=10 << 30),
    "a header of 2^64": file_of({}, length=2**64 - 1),
    "not JSON": file_of(b"{"),
    "not UTF-8": file_of(b'{"\xff": 1}'),
    "deep": file_of(b"[" * 100_000),
    "a list": file_of([]),
    "a number": file_of(b"4294967296"),
    "an entry of a number": file_of({"x": 4294967296}),
    "no type": file_of({"x": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "a type that is not known": file_of({"x": entry("F3")}, bytes(8)),
    "a type of a list": file_of({"x": entry(["F32"])}, bytes(8)),
    "a shape of a number": file_of({"x": entry(shape=2)}, bytes(8)),
    "a shape of texts": file_of({"x": entry(shape=["2"])}, bytes(8)),
    "a negative shape": file_of({"x": entry(shape=[-2])}, bytes(8)),
    "a huge shape": file_of({"x": entry(shape=[2**62, 4])}, bytes(8)),
    "a huge empty shape": file_of({"x": entry(shape=[2**40, 2**40, 0], offsets=[0, 0])}),
    "a shape with an end": file_of({"x": entry(shape=[1] * 70 + [2])}, bytes(8)),
    "a shape of other size": file_of({"x": entry(shape=[3])}, bytes(8)),
    "no offsets": file_of({"x": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "one offset": file_of({"x": entry(offsets=[0])}, bytes(8)),
    "turned offsets": file_of({"x": entry(offsets=[8, 0])}, bytes(8)),
    "offsets after the end": file_of({"x": entry(offsets=[8, 16])}, bytes(8)),
    "huge offsets": file_of({"x": entry(offsets=[2**63, 2**63 + 8])}, bytes(8)),
    "offsets of infinity": file_of(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,1e999]}}'),
    "two on one place": file_of({"x": entry(), "y": entry()}, bytes(8)),
    "overlapping": file_of({"x": entry(), "y": entry(offsets=[4, 12])}, bytes(12)),
    "a gap": file_of({"x": entry(), "y": entry(offsets=[12, 20])}, bytes(20)),
    "cut off": file_of({"x": entry()}, bytes(7)),
    "more after the end": file_of({"x": entry()}, bytes(9)),
    "metadata of a list": file_of({"__metadata__": []}),
    "many tensors": file_of({str(n): entry(shape=[0], offsets=[0, 0]) for n in range(1001)}),
    "a long name": file_of({"x" * 1000: entry()}, bytes(8)),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_malformed_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        FileError, match=r"(?s)t\.safetensors is not a whole safetensors .*; fix it"
    ):
        read_tensor_file(path, FileError, "fix it")
    with pytest.raises(AdapterError, match=r"t\.safetensors is not a whole safetensors file"):
        Adapter.load(path)


@pytest.mark.parametrize("seed", range(300))
def test_nothing_is_read_that_the_library_refuses(seed: int, tmp_path: Path) -> None:
    """Our reader is at most as lenient with changed header bytes, and raises only its own error."""
    rng = np.random.default_rng(seed)
    content = bytearray(save(ARRAYS, {"made": "here"}))
    for _ in range(rng.integers(1, 4)):
        content[rng.integers(0, 300)] = rng.choice([*b'0129{}[]",:F-e \xff', *range(0, 256, 16)])
    path = tmp_path / "t"
    path.write_bytes(content)
    try:
        file = read_tensor_file(path, FileError, "")
    except FileError:
        return
    known = dict(safetensors.deserialize(bytes(content)))
    assert file.tensors.keys() == known.keys()
    for name, tensor in file.tensors.items():
        assert list(tensor.shape) == known[name]["shape"]
        assert bytes(tensor.data) == bytes(known[name]["data"])


def test_pipes_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with stopped_if_it_hangs(10), pytest.raises(AdapterError, match="is not a regular file"):
        Adapter.load(tmp_path / "pipe.safetensors")
    with pytest.raises(AdapterError, match="does not exist"):
        Adapter.load(tmp_path / "none.safetensors")
    with pytest.raises(AdapterError, match=r"cannot be read|not a regular file"):
        Adapter.load(tmp_path)


@pytest.fixture
def paired(tiny_engine: Path, tmp_path: Path) -> Path:
    engine = copy_engine(tiny_engine, tmp_path / "engine")
    give_pairs(engine)
    return engine


def test_pair_tables_of_any_float_type_are_read(paired: Path) -> None:
    tables = give_pairs(paired)
    expected = Session.open(paired, num_threads=1).generate("abc", 20, ignore_eos=True).token_ids
    widened = {side: table.astype(np.float32) for side, table in tables.items()}
    edit_files(paired, {"pairs.safetensors": save(widened)})
    session = Session.open(paired, num_threads=1)
    assert session.generate("abc", 20, ignore_eos=True).token_ids == expected


SHAPE = (320, 4)
WRONG_TABLES: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "names": ({"lefs": np.zeros(SHAPE), "right": np.zeros(SHAPE)}, "there is no table left"),
    "more": ({side: np.zeros(SHAPE, np.float16) for side in ("left", "right", "bias")}, "'bias'"),
    "none": ({}, "there is no table right"),
    "vocabulary": (
        {"left": np.zeros((32, 4), np.float16)},
        r"left is F16 \[32, 4\], not \[320, 4\]",
    ),
    "rank": ({"left": np.zeros((320, 5), np.float16)}, r"left is F16 \[320, 5\]"),
    "turned": ({"left": np.zeros((4, 320), np.float16)}, r"left is F16 \[4, 320\]"),
    "flat": ({"left": np.zeros(1280, np.float16)}, r"left is F16 \[1280\]"),
    "not a number": ({"left": np.full(SHAPE, np.nan, np.float16)}, "left has values that are not"),
    "infinite": ({"right": np.full(SHAPE, -np.inf, np.float32)}, "right has values that are not"),
    "huge": ({"left": np.full(SHAPE, 1e30, np.float32)}, "not finite, or beyond 65504"),
    "integers": ({"left": np.zeros(SHAPE, np.int32)}, r"left is I32 \[320, 4\], .* F32, F16, BF16"),
}


@pytest.mark.parametrize("case", WRONG_TABLES)
def test_tables_that_do_not_fit_the_engine_are_refused(paired: Path, case: str) -> None:
    tables, message = WRONG_TABLES[case]
    edit_files(paired, {"pairs.safetensors": save(tables)})
    with pytest.raises(EngineError, match=rf"(?s)pairs.safetensors is broken; rebuild.*{message}"):
        Session.open(paired)


@pytest.mark.parametrize("case", ["a number", "deep", "a gap", "a header of 10 GB"])
def test_broken_files_of_tables_are_refused(paired: Path, case: str) -> None:
    edit_files(paired, {"pairs.safetensors": BROKEN[case]})
    with pytest.raises(EngineError, match=r"pairs.safetensors is not a whole safetensors file"):
        Session.open(paired)


def test_a_rank_that_differs_from_the_adapter_is_refused(paired: Path) -> None:
    edit_manifest(paired, pair_rank=5)
    with pytest.raises(AdapterError, match="pair_rank is 4, the manifest says 5"):
        Session.open(paired)
    edit_manifest(paired, pair_rank=0)
    with pytest.raises(AdapterError, match="pair_rank is 4, the manifest says 0"):
        Session.open(paired)


METADATA = [
    *(b"{", b"[]", b"3", b"[" * 100_000, b"null", b"{}"),
    *(b'{"identity": 3}', b'{"identity": {"a": 1}}', b'{"num_masks": 3}', b'{"tuned_on": null}'),
]


@pytest.mark.parametrize("text", METADATA, ids=[text[:20].decode() for text in METADATA])
def test_invalid_adapter_metadata_is_refused(
    text: bytes, tiny_engine: Path, tmp_path: Path
) -> None:
    own = Adapter.load(tiny_engine / "adapter.safetensors")
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(own.tensors(), {"bita-adapter": text.decode()}))
    with pytest.raises(AdapterError, match=r"a\.safetensors is (a safetensors file but no|broken)"):
        Adapter.load(path)


IDENTITIES = [
    *("{", "[" * 100_000, "3", "null", "[]", "{}", '"x"'),
    *('{"fingerprint": {"a": [1]}}', '{"fingerprint": {"a": [NaN]}}', '{"fingerprint": 3}'),
    *('{"num_layers": 1e999}', '{"num_layers": true}', '{"num_layers": 10000000000000000000000}'),
]


@pytest.mark.parametrize("text", IDENTITIES, ids=[text[:30] for text in IDENTITIES])
def test_invalid_model_identities_are_refused(text: str, tiny_engine: Path, tmp_path: Path) -> None:
    own = Adapter.load(tiny_engine / "adapter.safetensors")
    stated = {"format_version": "1", "identity": text, "num_masks": "3", "prefix_length": "2"}
    path = tmp_path / "a.safetensors"
    content = {"bita-adapter": json.dumps({**stated, "tuned_on": "x"})}
    path.write_bytes(save(own.tensors(), content))
    with pytest.raises(AdapterError, match=r"(?s)a\.safetensors is broken.*model identity"):
        Adapter.load(path)
