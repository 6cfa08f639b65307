"""Tests of which files have the weights, of invalid headers, and of paths never opened."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from weight_writers import CONFIG, random, write_model, write_shards, write_weights

from bita.errors import ModelError
from bita.export.huggingface.checkpoint import SafetensorsCheckpoint

INDEX = "model.safetensors.index.json"


def write_index(directory: Path, weight_map: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return directory


def write_header(
    path: Path, header: Any, data: bytes = b"", header_bytes: int | None = None
) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    size = len(text) if header_bytes is None else header_bytes
    path.write_bytes(size.to_bytes(8, "little") + text + data)


def test_a_single_file_takes_precedence_over_an_index(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a.safetensors": {"x": random(2, 2), "old": random(3, 2)}})
    write_weights(tmp_path / "model.safetensors", {"x": np.ones((2, 2), np.float32)})
    model = SafetensorsCheckpoint(tmp_path)
    assert model.names() == {"x"}
    np.testing.assert_array_equal(model.read("x"), 1)


def test_all_tensors_in_the_files_of_an_index_are_used(tmp_path: Path) -> None:
    shards = {"a.safetensors": {"x": random(2, 2), "y": random(3, 2)}, "b/b.safetensors": {}}
    (tmp_path / "b").mkdir()
    write_shards(tmp_path, shards)
    write_weights(tmp_path / "b" / "b.safetensors", {"y": np.ones((3, 2), np.float32)})
    write_index(tmp_path, {"x": "b/b.safetensors", "y": "a.safetensors"})
    model = SafetensorsCheckpoint(tmp_path)
    np.testing.assert_array_equal(model.read("y"), 1)  # from the last file, as in transformers
    np.testing.assert_array_equal(model.read("x"), random(2, 2))


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/../../x",
        "a\\b",
        "",
        ".",
        "a\0b",
        7,
        None,
        ["a"],
    ],
)
def test_files_outside_the_directory_are_refused(tmp_path: Path, shard: Any) -> None:
    write_weights(tmp_path / "x.safetensors", {"x": random(2, 2)})
    write_index(tmp_path / "model", {"x": shard})
    with pytest.raises(ModelError, match="must be the name of a file inside"):
        SafetensorsCheckpoint(tmp_path / "model")


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    write_weights(tmp_path / "blob", {"x": random(2, 2)})
    write_index(tmp_path / "model", {"x": "a.safetensors"})
    (tmp_path / "model" / "a.safetensors").symlink_to(tmp_path / "blob")
    assert SafetensorsCheckpoint(tmp_path / "model").names() == {"x"}


@pytest.mark.parametrize("weight_map", [[1], "a", None, {}, 7])
def test_an_invalid_weight_map_is_refused(tmp_path: Path, weight_map: Any) -> None:
    with pytest.raises(ModelError, match=r"index\.json: weight_map is"):
        SafetensorsCheckpoint(write_index(tmp_path, weight_map))


@pytest.mark.parametrize("name", ["config.json", INDEX, "a.safetensors", "model.safetensors"])
def test_pipes_are_not_opened(tmp_path: Path, name: str) -> None:
    write_shards(tmp_path, {"a.safetensors": {"x": random(2, 2)}})
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ModelError, match=r"not a regular file"):
        SafetensorsCheckpoint(tmp_path)


def test_a_model_card_that_is_a_pipe_has_no_license(tmp_path: Path) -> None:
    write_model(tmp_path, {"m": random(2, 2)})
    os.mkfifo(tmp_path / "README.md")
    assert SafetensorsCheckpoint(tmp_path).license is None


def test_a_model_card_with_many_empty_lines_is_read_quickly(tmp_path: Path) -> None:
    write_model(tmp_path, {"m": random(2, 2)})
    (tmp_path / "README.md").write_text("---" + "\n" * 200_000)
    assert SafetensorsCheckpoint(tmp_path).license is None


def test_a_directory_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, {"m": random(2, 2)})
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ModelError, match="is not a regular file"):
        SafetensorsCheckpoint(tmp_path)


def test_adapters_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path, {"m": random(2, 2)})
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"an adapter \(LoRA\) of another model; merge it"):
        SafetensorsCheckpoint(tmp_path)


def test_weights_under_other_names_are_reported(tmp_path: Path) -> None:
    write_model(tmp_path, {"m": random(2, 2)})
    (tmp_path / "model.safetensors").rename(tmp_path / "consolidated.safetensors")
    with pytest.raises(ModelError, match=r"does not load consolidated\.safetensors"):
        SafetensorsCheckpoint(tmp_path)


def entry(begin: Any = 0, end: Any = 16, shape: Any = (2, 2), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BROKEN_HEADERS: list[tuple[Any, int, str]] = [
    ({"a": entry(), "b": entry()}, 16, "b overlaps the tensor before it"),
    ({"a": entry(4, 20)}, 20, "a follows a gap"),
    ({"a": entry()}, 20, "4 bytes after its tensors"),
    ({"a": entry(-16, 0)}, 16, r"a\.data_offsets is \[-16, 0\]"),
    ({"a": entry(0, 2**64)}, 16, r"a\.data_offsets is"),
    ({"a": entry(16, 0)}, 16, "takes 16 bytes"),
    ({"a": entry(shape=(-2, -2))}, 16, r"a\.shape is \[-2, -2\]"),
    ({"a": entry(shape=[2**62, 2**62])}, 16, "takes .* bytes"),
    ({"a": entry(shape=[1] * 100)}, 16, "has 100 dimensions"),
    ({"a": entry(shape=2)}, 16, r"a\.shape is 2"),
    ({"a": entry(dtype=32)}, 16, r"a\.dtype is 32"),
    ({"a": entry(dtype="F33")}, 16, "unknown type 'F33'"),
    ({"a": {}}, 0, r"a\.dtype is missing"),
    ({"a": None}, 0, "a is None"),
    ('{"a":' * 5000 + "1" + "}" * 5000, 0, "nested too deeply"),
    ("[" * 200_000, 0, "nested too deeply"),
]


@pytest.mark.parametrize(("header", "data_bytes", "message"), BROKEN_HEADERS)
def test_headers_are_checked_as_strictly_as_by_the_library(
    tmp_path: Path, header: Any, data_bytes: int, message: str
) -> None:
    write_model(tmp_path, {})
    path = tmp_path / "model.safetensors"
    write_header(path, header, bytes(data_bytes))
    with pytest.raises(SafetensorError), safe_open(path, "numpy"):
        pass
    with pytest.raises(ModelError, match=message):
        SafetensorsCheckpoint(tmp_path)


def test_a_tensor_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, {})
    once = json.dumps({"a": entry()})
    write_header(tmp_path / "model.safetensors", f"{once[:-1]}, {once[1:]}", bytes(16))
    with pytest.raises(ModelError, match="'a' occurs twice"):
        SafetensorsCheckpoint(tmp_path)


@pytest.mark.parametrize("header_bytes", [0, 1, 10**10, 2**63])
def test_impossible_header_sizes_are_refused(tmp_path: Path, header_bytes: int) -> None:
    write_model(tmp_path, {})
    write_header(tmp_path / "model.safetensors", "{}", b"", header_bytes)
    with pytest.raises(ModelError, match=f"its header of {header_bytes} bytes does not fit"):
        SafetensorsCheckpoint(tmp_path)


def test_a_file_that_became_shorter_is_reported(tmp_path: Path) -> None:
    model = SafetensorsCheckpoint(write_model(tmp_path, {"m": random(40, 4)}))
    os.truncate(tmp_path / "model.safetensors", 200)
    with pytest.raises(ModelError, match="became shorter while it was read"):
        model.read("m")
