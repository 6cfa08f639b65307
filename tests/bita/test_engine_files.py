"""Files that differ from the engine's table are refused by name, kind, size or hash."""

import os
from pathlib import Path
from typing import Any

import pytest
from deadlines import stopped_if_it_hangs
from engine_edits import copy_engine, edit_manifest, entry_of, give_pairs, read_manifest

from bita.engine import open_engine
from bita.engine_files import MAX_FILES
from bita.errors import EngineError
from bita.runtime.session import Session

ONE = entry_of(b"x")
LISTED = (
    *("model.onnx", "model.onnx.data", "adapter.safetensors", "tree.json"),
    *("tokenizer.json", "generation.json", "chat_template.jinja"),
)


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Path:
    return copy_engine(tiny_engine, tmp_path / "engine")


def list_file(engine: Path, name: str, entry: Any) -> None:
    edit_manifest(engine, files={**read_manifest(engine)["files"], name: entry})


@pytest.mark.parametrize(
    "name",
    [
        *("../engine/model.onnx", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "x\0y", "/"),
        *("n" * 256, "é" * 128),
    ],
)
def test_names_that_leave_the_directory_are_refused(engine: Path, name: str) -> None:
    list_file(engine, name, ONE)
    with pytest.raises(EngineError, match=r"files: '.* name of a file"):
        open_engine(engine)


def test_other_file_names_are_accepted(engine: Path) -> None:
    for name in ("NOTES.md", "Model.onnx", "a b", "..a", "é", "a:b"):
        (engine / name).write_bytes(b"x")
        list_file(engine, name, ONE)
    assert "..a" in open_engine(engine).files


SIZES: list[Any] = ["1", 1.5, -1, True, None, [1]]
HASHES: list[Any] = ["", "0" * 63, "Z" * 64, None, [], "0" * 65]


@pytest.mark.parametrize(
    "entry",
    [
        *(None, 3, [], {}, {"bytes": 420}, {"sha256": "0" * 64}),
        *({**ONE, "bytes": size} for size in SIZES),
        *({**ONE, "sha256": digest} for digest in HASHES),
    ],
)
def test_an_entry_without_a_valid_size_and_hash_is_refused(engine: Path, entry: Any) -> None:
    list_file(engine, "tree.json", entry)
    with pytest.raises(EngineError, match=r"files: entry of 'tree.json' is .*not its size and"):
        open_engine(engine)


@pytest.mark.parametrize("name", [*LISTED, "manifest.json"])
@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "circle"])
def test_a_path_that_is_not_a_regular_file_is_refused(engine: Path, name: str, kind: str) -> None:
    path = engine / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else name)
    message = rf"{name} .*(not a regular file|symbolic links)|has no manifest.json"
    with stopped_if_it_hangs(10), pytest.raises(EngineError, match=message):
        Session.open(engine)


@pytest.mark.parametrize("as_cache", [False, True])
def test_files_may_be_symbolic_links(engine: Path, as_cache: bool) -> None:
    """Download caches link all files to blobs; users link large files to another disk."""
    elsewhere = engine.parent / "elsewhere"
    elsewhere.mkdir()
    for number, name in enumerate(LISTED if as_cache else LISTED[1:2]):
        target = elsewhere / (f"blob{number}" if as_cache else name)
        (engine / name).rename(target)
        (engine / name).symlink_to(target)
    if as_cache or _takes_linked_weights():
        assert Session.open(engine, num_threads=1).generate("a", 3).token_ids


def _takes_linked_weights() -> bool:
    import onnxruntime

    major, minor = map(int, onnxruntime.__version__.split(".")[:2])
    return (major, minor) >= (1, 32) or (major, minor) < (1, 24)


@pytest.mark.parametrize("name", [name for name in LISTED if name != "model.onnx.data"])
def test_a_changed_byte_is_found_in_every_file_but_the_weights(engine: Path, name: str) -> None:
    data = bytearray((engine / name).read_bytes())
    data[len(data) // 2] ^= 1
    (engine / name).write_bytes(data)
    with pytest.raises(EngineError, match=rf"{name} is damaged \(sha256 differs\)"):
        open_engine(engine)


def test_tables_of_pair_scores_are_hashed_whatever_their_size(engine: Path) -> None:
    give_pairs(engine)
    large = bytes(8 << 20)
    (engine / "pairs.safetensors").write_bytes(large + b"x")
    list_file(engine, "pairs.safetensors", entry_of(large + b"y"))
    with pytest.raises(EngineError, match=r"pairs\.safetensors is damaged"):
        open_engine(engine)


def test_an_unlisted_chat_template_is_refused(engine: Path) -> None:
    files = read_manifest(engine)["files"]
    del files["chat_template.jinja"]
    edit_manifest(engine, files=files)
    with pytest.raises(EngineError, match=r"does not list chat_template\.jinja"):
        open_engine(engine)
    (engine / "chat_template.jinja").unlink()
    assert not Session.open(engine).has_chat_template


def test_unlisted_chat_pieces_are_refused(engine: Path) -> None:
    open_engine(engine)  # engines of older builds have no chat pieces
    (engine / "chat_pieces.json").write_text("{}")
    with pytest.raises(EngineError, match=r"does not list chat_pieces\.json"):
        open_engine(engine)


def test_a_table_of_too_many_files_is_refused(engine: Path) -> None:
    edit_manifest(engine, files={str(number): ONE for number in range(MAX_FILES + 1)})
    with pytest.raises(EngineError, match=r"lists 1001 files; an engine has at most 1000"):
        open_engine(engine)
    (engine / "manifest.json").write_text("{" + " " * (5 << 20))
    with pytest.raises(EngineError, match=r"has 5242881 bytes; at most 4194304 are read"):
        open_engine(engine)
