"""The C library refuses broken engines with the same messages as Python."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cpp_programs import answer_tool, cpp_program, open_fault
from engine_edits import copy_engine, edit_files, edit_manifest, read_manifest
from make_tiny_engine import write_plain_model
from mutations import mutated_bytes, mutated_json
from native_engines import FEATURES, native_engine, require_library
from tokenizers import Tokenizer, models

from bita import native
from bita.cli.main import main
from bita.errors import BitaError
from bita.runtime.session import Session

Edit = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_library()
    return native_engine(FEATURES["long"], tmp_path_factory.mktemp("native")).path


@pytest.fixture
def engine(whole: Path, tmp_path: Path) -> Path:
    return copy_engine(whole, tmp_path / "engine")


def edit_json(name: str, **changes: Any) -> Edit:
    """Return an edit that changes values of a JSON file."""

    def edit(engine: Path) -> None:
        values = {**json.loads((engine / name).read_text()), **changes}
        edit_files(engine, {name: json.dumps(values).encode()})

    return edit


def change_byte(name: str) -> Edit:
    def edit(engine: Path) -> None:
        content = bytearray((engine / name).read_bytes())
        content[len(content) // 2] ^= 1
        (engine / name).write_bytes(content)

    return edit


def set_entry(name: str, entry: Any) -> Edit:
    return lambda engine: edit_manifest(
        engine, files={**read_manifest(engine)["files"], name: entry}
    )


def remove(name: str) -> Edit:
    return lambda engine: (engine / name).unlink()


def replace_by_directory(name: str) -> Edit:
    def edit(engine: Path) -> None:
        (engine / name).unlink()
        (engine / name).mkdir()

    return edit


def cut(name: str) -> Edit:
    return lambda engine: edit_files(engine, {name: (engine / name).read_bytes()[:-3]})


EDITS: dict[str, Edit] = {
    "no manifest": remove("manifest.json"),
    "a manifest that is not JSON": lambda engine: (engine / "manifest.json").write_text("[1, 2"),
    "a manifest that is a list": lambda engine: (engine / "manifest.json").write_text("[1, 2]"),
    "another format": lambda engine: edit_manifest(engine, format="other"),
    "no format": lambda engine: edit_manifest(engine, format=...),
    "a later format": lambda engine: edit_manifest(engine, format_version=99),
    "no model": lambda engine: edit_manifest(engine, model=...),
    "a model that is a number": lambda engine: edit_manifest(engine, model=3, family=None),
    "sizes": lambda engine: edit_manifest(engine, num_layers=0, head_dim=-1, capacity="x"),
    "large sizes": lambda engine: edit_manifest(engine, vocab_size=10**12, num_masks=1.5),
    "an unknown backend": lambda engine: edit_manifest(engine, backend="npu", mode="fast"),
    "an unknown dialect": lambda engine: edit_manifest(engine, dialect="latin"),
    "a precision of others": lambda engine: edit_manifest(engine, precision="fp32"),
    "a backend of others": lambda engine: edit_manifest(engine, backend="ort-cuda"),
    "no room for the prefix": lambda engine: edit_manifest(engine, capacity=4),
    "requires": lambda engine: edit_manifest(engine, requires=["x"]),
    "a table that is a list": lambda engine: edit_manifest(engine, files=[]),
    "a way out": set_entry("../model.onnx", {"bytes": 1, "sha256": "0" * 64}),
    "no hash": set_entry("tree.json", {"bytes": 1, "sha256": "x"}),
    "an entry of text": set_entry("tree.json", 'it\'s "here"'),
    "a missing file": remove("tokenizer.json"),
    "another size": lambda engine: (engine / "tree.json").write_text("x"),
    "damage": change_byte("adapter.safetensors"),
    "damage of the graph": change_byte("model.onnx"),
    "a directory for a file": replace_by_directory("tree.json"),
    "a tree that is none": edit_json("tree.json", nodes=3),
    "a tree without parents": edit_json("tree.json", nodes=[{"path": [1, 1], "masks": 0}]),
    "a tree of texts": edit_json("tree.json", nodes=[{"path": ["x"], "masks": -1}, 3]),
    "nodes twice": edit_json("tree.json", nodes=[{"path": [1], "masks": 0}] * 2),
    "too many masks": edit_json("tree.json", nodes=[{"path": [], "masks": 9}]),
    "a level that is none": edit_json("tree.json", min_level=40),
    "an old tree": edit_json("tree.json", min_match=2),
    "a table without trees": edit_json("tree.json", trees=[], levels=[1], by_state=[[0]]),
    "a table that is none": edit_json("tree.json", trees=4, levels=[0], by_state=[]),
    "eos ids": edit_json("generation.json", eos_ids="x", special_tokens={"a": 1}),
    "an eos id beyond the model": edit_json("generation.json", eos_ids=[5000]),
    "sampling": edit_json("generation.json", sampling={"warmth": 1, "top_p": 3}),
    "an adapter that is cut": cut("adapter.safetensors"),
    "a graph that is cut": cut("model.onnx"),
    "another number of masks": lambda engine: edit_manifest(engine, num_masks=7),
    "another prefix": lambda engine: edit_manifest(engine, prefix_length=3),
    "later operators": lambda engine: edit_manifest(engine, requires={"bita.operators": "9"}),
    "a later ONNX Runtime": lambda engine: edit_manifest(
        engine, requires={"bita.operators": "3", "onnxruntime": "9.1"}
    ),
    "other layers": lambda engine: edit_manifest(engine, num_layers=3),
    "other ranks": lambda engine: edit_manifest(engine, num_ranks=5),
}
# Messages that differ from Python's because the fix differs.
OWN_MESSAGES = {
    "a graph that is cut": "is not a readable graph (it is cut off); rebuild the engine",
    "later operators": "bita.operators is '9', and this library has version 3 of the native",
    "a later ONNX Runtime": "needs onnxruntime 9.1 or newer; ",
    "a manifest that is not JSON": "manifest.json is not readable JSON (byte 6 is not JSON)",
}


def python_fault(engine: Path) -> str:
    try:
        Session.open(engine, num_threads=1)
    except BitaError as error:
        return str(error)
    raise AssertionError("Python opens it")


@pytest.mark.parametrize("name", EDITS)
def test_faults_are_reported_with_the_message_of_python(name: str, engine: Path) -> None:
    EDITS[name](engine)
    found, wanted = open_fault(engine), python_fault(engine)
    if name in OWN_MESSAGES:
        assert OWN_MESSAGES[name] in found
        return
    lines, wanted_lines = found.splitlines(), wanted.splitlines()
    assert lines[:1] == wanted_lines[:1]
    assert sorted(lines) == sorted(wanted_lines)  # ordered as in the file, or by name


def test_a_missing_directory_is_reported(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert open_fault(missing) == python_fault(missing)


def test_engines_of_other_backends_are_refused_with_an_alternative(engine: Path) -> None:
    edit_manifest(engine, backend="tensorrt-rtx", dialect="standard", precision="int8")
    found = open_fault(engine)
    assert "was built for tensorrt-rtx, which this library does not run: open it with" in found
    assert found.endswith("or run it from Python")


def test_weights_are_hashed_on_request(engine: Path) -> None:
    change_byte("model.onnx.data")(engine)
    with answer_tool(engine) as tool:  # not hashed by default: it would take seconds
        assert tool.answer(token_ids=[5], options={"max_new_tokens": 1})["finish"] == "length"
    assert "model.onnx.data is damaged (sha256 differs)" in open_fault(
        engine, {"check_hashes": True}
    )


@pytest.mark.parametrize("seed", range(40))
def test_mutated_engines_are_refused_exactly_when_python_refuses_them(
    seed: int, engine: Path
) -> None:
    rng = random.Random(seed)
    name = rng.choice(["manifest.json", "tree.json", "generation.json", "adapter.safetensors"])
    content = (engine / name).read_bytes()
    if name == "adapter.safetensors":
        edit_files(engine, {name: mutated_bytes(content, rng)})
    else:
        mutated = json.dumps(mutated_json(json.loads(content), rng)).encode()
        if name == "manifest.json":
            (engine / name).write_bytes(mutated)
        else:
            edit_files(engine, {name: mutated})
    try:
        python_fault(engine)
    except AssertionError:
        with answer_tool(engine) as tool:
            tool.answer(token_ids=[5], options={"max_new_tokens": 3})
    else:
        assert open_fault(engine)


def use_unigram_tokenizer(folder: Path) -> None:
    """Give the model in a folder a Unigram tokenizer, which only Python supports."""
    path = folder / "tokenizer.json"
    vocabulary = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    pieces = [(piece, -1.0) for piece in sorted(vocabulary, key=vocabulary.get)]
    Tokenizer(models.Unigram(pieces, 0, byte_fallback=False)).save(str(path))


def test_building_an_engine_reports_a_tokenizer_that_libbita_does_not_support(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`bita inspect` reports it too; without libbita both say that it is not known."""
    library = cpp_program("libbita.so.0")
    write_plain_model(tmp_path / "model")
    build = ["engine", str(tmp_path / "model"), "--uncalibrated", "--precision", "fp32"]
    show = ["inspect", str(tmp_path / "engine")]
    said = {
        "before": "as in Python",
        "after": "none, give token ids",
        "without": "not known, since",
    }
    for state in said:
        if state == "after":
            use_unigram_tokenizer(tmp_path / "model")
        with monkeypatch.context() as patch:
            if state == "without":
                patch.setattr(native, "PACKAGE", tmp_path / "packages")
            else:
                patch.setattr(native, "_library", lambda: library)
            assert main([*build, "--out", str(tmp_path / "engine"), "--capacity", "384"]) == 0
            line = "C and C++: programs give token ids to this engine: "
            assert (line in capsys.readouterr().out) == (state == "after")
            assert main(show) == 0
        assert said[state] in capsys.readouterr().out
    fault = native.text_fault(tmp_path / "engine", library)
    assert fault == open_fault(tmp_path / "engine")
    assert "its model is of type 'Unigram', not BPE; open the engine for token ids" in fault
    with answer_tool(tmp_path / "engine", {"token_ids_only": True}) as tool:
        plain = tool.answer(token_ids=[5, 6], options={"max_new_tokens": 3, "ignore_eos": True})
        stops = {"max_new_tokens": 3, "ignore_eos": True, "stop_token_ids": plain["token_ids"][1:2]}
        stopped = tool.answer(token_ids=[5, 6], options=stops)
    assert (len(plain["token_ids"]), plain["finish"]) == (3, "length")
    assert (len(stopped["token_ids"]), stopped["finish"]) == (2, "stop")


def test_a_file_that_is_not_libbita_is_reported(tmp_path: Path) -> None:
    (tmp_path / "libbita.so.0").write_bytes(b"none")
    with pytest.raises(native.LibbitaMissingError, match="is not the libbita of this bita-edge"):
        native.text_fault(tmp_path, tmp_path / "libbita.so.0")
