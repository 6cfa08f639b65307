"""Damaged and hostile GGUF files give one clear error, quickly and in little memory."""

import os
import random
import struct
import tracemalloc
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from tiny_gguf import HIDDEN, base_metadata, converted, llama_tensors, write_gguf, write_model

from bita.errors import ModelError
from bita.export.gguf.checkpoint import GgufCheckpoint
from bita.export.gguf.file import MAX_ENTRIES, MAX_TEXTS, read_gguf

U8, U32, F32, STRING, ARRAY, U64, F64 = 0, 4, 6, 8, 9, 10, 12
HUGE = 1 << 60


def header(num_tensors: int, num_fields: int, body: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_fields) + body


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def list_entry(item_type: int, count: int, items: bytes = b"") -> bytes:
    """Return a metadata entry that claims to be a list of `count` items."""
    return text(b"key") + struct.pack("<IIQ", ARRAY, item_type, count) + items


def tensor(name: bytes, shape: tuple[int, ...], offset: int = 0, kind: int = 0) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


LLAMA = text(b"general.architecture") + struct.pack("<I", STRING) + text(b"llama")
ENTRY = text(b"key") + struct.pack("<IB", U8, 1)
BROKEN: list[tuple[bytes, str]] = [
    (header(0, 10**9), "1000000000 entries of metadata; at most"),
    (header(HUGE, 0), "tensors; at most"),
    (header(0, MAX_ENTRIES), "truncated or damaged"),
    (header(0, 1, list_entry(STRING, HUGE)), "texts; at most"),
    (header(0, 1, list_entry(STRING, MAX_TEXTS)), "truncated or damaged"),
    (header(0, 1, list_entry(F64, HUGE)), "truncated or damaged"),
    (header(0, 1, list_entry(ARRAY, 1) * 100_000), r"key has values of type 9"),
    (header(0, 1, list_entry(99, 1)), "key has values of type 99"),
    (header(0, 1, text(b"key") + struct.pack("<I", 99)), "key has values of type 99"),
    (header(0, 1, struct.pack("<Q", 1 << 63)), "truncated or damaged"),
    (header(0, 1, text(b"\xff\xfe") + ENTRY), "not UTF-8"),
    (header(0, 2, ENTRY + ENTRY), "'key' twice"),
    (header(2, 0, tensor(b"t", (1,)) * 2), "the tensor 't' twice"),
    (header(1, 0, tensor(b"t", (1 << 63,) * 4)), "truncated"),
    (header(1, 0, tensor(b"t", (4,), offset=HUGE)), "truncated"),
    (header(1, 0, tensor(b"t", (4,), offset=7)), "not at a multiple of 32"),
    (header(1, 0, tensor(b"t", (0, 4))), "without values"),
    (header(1, 0, tensor(b"t", ())), "0 dimensions"),
    (header(1, 0, tensor(b"t", (1,) * 5)), "5 dimensions"),
    (header(1, 0, tensor(b"t", (33,), kind=8)), "blocks of 32"),
]


@pytest.mark.parametrize(("data", "message"), BROKEN)
@pytest.mark.parametrize("size", [0, 1 << 34])
def test_a_broken_header_is_refused_at_once(
    tmp_path: Path, data: bytes, message: str, size: int
) -> None:
    """`size` extends the file with zeros, which take no disk space."""
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    if size:
        os.truncate(path, size)
    began = perf_counter()
    if not size:
        tracemalloc.start()  # this makes reading ten times slower
    try:
        with pytest.raises(ModelError) as caught:
            GgufCheckpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    if not size:
        assert caught.match(message)
        assert peak < 10_000_000
    assert perf_counter() - began < 5


def test_tensors_on_the_same_bytes_are_refused(tmp_path: Path) -> None:
    body = tensor(b"a", (64,)) + tensor(b"b", (64,), offset=128)
    path = tmp_path / "m.gguf"
    path.write_bytes(header(2, 0, body) + bytes(1024))
    with pytest.raises(ModelError, match="a and b overlap"):
        read_gguf(path)


@pytest.mark.parametrize("value", [0, 3, 33, -8, 1 << 40, 32.5, "32", [32], True])
def test_alignments_other_than_powers_of_two_are_refused(tmp_path: Path, value: Any) -> None:
    path = write_gguf(
        tmp_path / "m.gguf", "llama", base_metadata("llama"), converted("llama", llama_tensors())
    )
    entry = text(b"general.alignment")
    match value:
        case bool():
            entry += struct.pack("<I?", 7, value)
        case int():
            entry += struct.pack("<Iq", 11, value)
        case float():
            entry += struct.pack("<If", F32, value)
        case str():
            entry += struct.pack("<I", STRING) + text(value.encode())
        case _:
            entry += struct.pack("<IIQI", ARRAY, U32, 1, value[0])
    data = path.read_bytes()
    num_fields = struct.unpack_from("<Q", data, 16)[0] + 1
    path.write_bytes(data[:16] + struct.pack("<Q", num_fields) + entry + data[24:])
    with pytest.raises(ModelError, match=r"general\.alignment"):
        GgufCheckpoint(path)


def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    for name in ("pipe.gguf", "folder.gguf"):
        with pytest.raises(ModelError, match=rf"{name} is not a regular file"):
            GgufCheckpoint(tmp_path / name)
    with pytest.raises(ModelError, match=r"none\.gguf cannot be read"):
        GgufCheckpoint(tmp_path / "none.gguf")
    for number in (1, 2):
        os.mkfifo(tmp_path / f"m-0000{number}-of-00002.gguf")
    with pytest.raises(ModelError, match="is not a regular file"):
        GgufCheckpoint(tmp_path / "m-00001-of-00002.gguf")


def test_invalid_parts_of_a_split_file_are_refused(tmp_path: Path) -> None:
    stored = list(converted("llama", llama_tensors()).items())
    metadata = base_metadata("llama") | {"split.count": 2}
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, dict(stored))
    with pytest.raises(ModelError, match=r"one of 2 parts \(split\.count\), but is not named"):
        GgufCheckpoint(path)
    for number, part in ((1, stored[:5]), (2, stored[4:])):
        write_gguf(tmp_path / f"m-0000{number}-of-00002.gguf", "llama", metadata, dict(part))
    with pytest.raises(ModelError, match="which another part has too"):
        GgufCheckpoint(tmp_path / "m-00001-of-00002.gguf")
    with pytest.raises(ModelError, match=r"missing: .*m-00003-of-99999\.gguf, .* and \d+ more;"):
        GgufCheckpoint(tmp_path / "m-00001-of-99999.gguf")


def test_a_file_that_became_shorter_is_reported(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    checkpoint = GgufCheckpoint(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ModelError, match="has become shorter"):
        checkpoint.read("model.layers.1.mlp.down_proj.weight")  # the last of the file


WRONG: list[Any] = ["x", "é", [1, 2], ["a"], True, float("nan"), float("inf"), -1.0, 2.5]
NUMBERS = (
    *("block_count", "context_length", "embedding_length", "feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
    *("rope.dimension_count", "vocab_size"),
)


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("key", NUMBERS)
def test_invalid_counts_are_refused_by_key(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"llama\.{key}"):
        GgufCheckpoint(write_model(tmp_path / "m.gguf", **{key.replace(".", "__"): value}))


@pytest.mark.parametrize("value", [*WRONG[:7], -1.0, 0.0])
@pytest.mark.parametrize("key", ["rope.freq_base", "attention.layer_norm_rms_epsilon"])
def test_invalid_numbers_are_refused_by_key(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"llama\.{key}"):
        GgufCheckpoint(write_model(tmp_path / "m.gguf", **{key.replace(".", "__"): value}))


@pytest.mark.parametrize("count", [0, 1025, 2**32 - 1])
def test_counts_out_of_bounds_are_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(ModelError, match=rf"llama\.block_count is {count}, not a whole number of"):
        GgufCheckpoint(write_model(tmp_path / "m.gguf", block_count=count))


TEXT_FAULTS: list[tuple[str, Any]] = [
    *(("tokens", value) for value in ("x", 3, [1, 2], True)),
    *(("merges", value) for value in ("x", 3, [1, 2])),
    *(("token_type", value) for value in ("x", 3, [1, 2], ["a"] * 40, [1.5] * 40, [9] * 40)),
    *(("model", value) for value in (3, ["gpt2"], True)),
    *(("pre", value) for value in (3, ["smollm"])),
    *(("eos_token_id", value) for value in ("3", [3], 40, 2**31, 1.5, True)),
    *(("bos_token_id", value) for value in ("3", [3], 40)),
    *(("eot_token_id", value) for value in ([3, 4], 99)),
    *((f"add_{what}_token", value) for what in ("bos", "eos") for value in (1, "yes", [True])),
    ("add_space_prefix", 2),
]


@pytest.mark.parametrize(("key", "value"), TEXT_FAULTS)
def test_invalid_tokenizer_metadata_is_refused_by_key(tmp_path: Path, key: str, value: Any) -> None:
    metadata = base_metadata("llama") | {f"tokenizer.ggml.{key}": value}
    stored = converted("llama", llama_tensors())
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, stored)
    with pytest.raises(ModelError, match=f"{key}|tokens, but"):
        GgufCheckpoint(path).text_assets()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("tokenizer.chat_template", value) for value in (3, ["x"], True)),
        *(("general.sampling.temp", value) for value in ("x", [0.5], float("nan"))),
        ("general.name", [1]),
    ],
)
def test_other_invalid_metadata_is_refused_by_key(tmp_path: Path, key: str, value: Any) -> None:
    metadata = byte_level() | {key: value}
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, converted("llama", llama_tensors()))
    with pytest.raises(ModelError, match=rf"{key} is "):
        GgufCheckpoint(path).text_assets()


def byte_level() -> dict[str, Any]:
    metadata = base_metadata("llama")
    tokens = [*metadata["tokenizer.ggml.tokens"][:-1], "AB"]
    return {**metadata, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["A B"]}


@pytest.mark.parametrize("values", [[1.0] * 39, [float("nan")] * 40, ["1"] * 40])
def test_scores_must_be_one_number_for_each_token(tmp_path: Path, values: list[Any]) -> None:
    metadata = byte_level() | {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": values}
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, converted("llama", llama_tensors()))
    with pytest.raises(ModelError, match="scores"):
        GgufCheckpoint(path).text_assets()


def test_ids_that_mean_none_are_ignored(tmp_path: Path) -> None:
    metadata = byte_level() | {"tokenizer.ggml.padding_token_id": 2**32 - 1}
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, converted("llama", llama_tensors()))
    checkpoint = GgufCheckpoint(path)
    assert "pad_token" not in checkpoint.text_assets().special_tokens
    assert "pad_token_id" not in checkpoint.config


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path) -> None:
    stored = {"token_embd.weight": np.ones((39, HIDDEN), np.float32)}
    path = write_gguf(tmp_path / "m.gguf", "llama", byte_level(), stored)
    with pytest.raises(ModelError, match=r"40 tokens .*, but embeddings of 39"):
        GgufCheckpoint(path).text_assets()


def test_random_damage_gives_one_clear_error(tmp_path: Path) -> None:
    content = write_gguf(
        tmp_path / "m.gguf", "llama", byte_level(), converted("llama", llama_tensors())
    ).read_bytes()
    path, rng, num_read = tmp_path / "damaged.gguf", random.Random(5), 0
    sizes = (0, 1, 255, 2**32 - 1, 2**60, 2**64 - 1)
    for _ in range(400):
        data = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(3000)
            if rng.random() < 0.3:
                data[place : place + 8] = struct.pack("<Q", rng.choice(sizes))
            else:
                data[place] = rng.randrange(256)
        path.write_bytes(data)
        try:
            checkpoint = GgufCheckpoint(path)
            checkpoint.text_assets()
            num_read += sum(checkpoint.read(name).size > 0 for name in checkpoint.names())
        except ModelError:
            continue
    assert num_read
