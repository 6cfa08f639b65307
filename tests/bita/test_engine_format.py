"""All faults of a broken engine directory are reported together, before anything is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bita.engine import new_engine, open_engine
from bita.errors import EngineError
from bita.runtime.backends import ort_session
from bita.runtime.session import Session


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_engine, tmp_path / "engine"))


def edit_manifest(engine: Path, **changes: object) -> None:
    path = engine / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda e: shutil.rmtree(e), "is not a directory; build one: make engine"),
        (lambda e: (e / "manifest.json").unlink(), "has no manifest.json"),
        (lambda e: (e / "manifest.json").write_text("{"), "manifest.json is not readable JSON"),
        (
            lambda e: (e / "manifest.json").write_text("[]"),
            r"manifest.json holds \[\], not a JSON object",
        ),
        (lambda e: edit_manifest(e, format="gguf"), "format is 'gguf', not 'bita-engine'"),
        (
            lambda e: edit_manifest(e, format_version=99),
            "format version 99; this bita-edge reads 2",
        ),
        (lambda e: edit_manifest(e, mode="fast"), "mode 'fast' is not one of"),
        (lambda e: edit_manifest(e, capacity="big"), "capacity is 'big'"),
        (lambda e: edit_manifest(e, capacity=-1), "capacity is -1"),
        (lambda e: edit_manifest(e, requires={"onnxruntime": 1}), "requires is"),
        (lambda e: edit_manifest(e, files=[]), r"files is \[\], not a table"),
        (lambda e: edit_manifest(e, files={}), "does not list model.onnx"),
        (
            lambda e: edit_manifest(e, requires={"onnxruntime": "9.1"}),
            "needs onnxruntime 9.1 or newer; .* pip install 'onnxruntime>=9.1'",
        ),
        (lambda e: (e / "tree.json").unlink(), "tree.json is missing"),
        (lambda e: truncate(e / "model.onnx.data"), "model.onnx.data has .* bytes, not"),
        (lambda e: flip_a_bit(e / "adapter.safetensors"), "adapter.safetensors is damaged"),
    ],
)
def test_each_fault_is_reported(engine: Path, harm: Callable[[Path], object], message: str) -> None:
    harm(engine)
    with pytest.raises(EngineError, match=message):
        Session.open(engine)


def test_int8_engines_for_vnni_are_refused_on_processors_without_it(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_manifest(engine, requires={"processor": "exact int8"})
    monkeypatch.setattr(ort_session, "multiplies_int8_exactly", lambda: True)
    Session.open(engine)
    monkeypatch.setattr(ort_session, "multiplies_int8_exactly", lambda: False)
    with pytest.raises(EngineError, match=r"for processors with VNNI.*rebuild it here: make"):
        Session.open(engine)


def test_all_faults_are_reported_together(engine: Path) -> None:
    (engine / "tree.json").unlink()
    truncate(engine / "model.onnx")
    edit_manifest(engine, capacity=None, mode="x")
    with pytest.raises(EngineError) as caught:
        open_engine(engine)
    message = str(caught.value)
    assert "4 faults" in message
    for part in ("tree.json is missing", "model.onnx has", "capacity is None", "mode 'x'"):
        assert part in message


def test_a_listed_file_outside_the_engine_is_refused(engine: Path) -> None:
    files = json.loads((engine / "manifest.json").read_text())["files"]
    files["../secret"] = {"bytes": 1, "sha256": ""}
    edit_manifest(engine, files=files)
    with pytest.raises(EngineError, match=r"'\.\./secret' points out of the engine"):
        open_engine(engine)


def test_weights_are_hashed_on_request_only(engine: Path) -> None:
    flip_a_bit(engine / "model.onnx.data")
    open_engine(engine)
    with pytest.raises(EngineError, match=r"model\.onnx\.data is damaged"):
        open_engine(engine, check_hashes=True)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation.json", "tree.json", "model.onnx"])
def test_files_with_a_valid_hash_and_invalid_content_are_refused(engine: Path, name: str) -> None:
    """A file with the right hash but meaningless content still raises a BitaError."""
    import hashlib

    from bita.errors import BitaError

    (engine / name).write_bytes(b"\x00 nonsense")
    files = json.loads((engine / "manifest.json").read_text())["files"]
    digest = hashlib.sha256((engine / name).read_bytes()).hexdigest()
    files[name] = {"bytes": 10, "sha256": digest}
    edit_manifest(engine, files=files)
    with pytest.raises(BitaError):
        Session.open(engine)


def test_an_engine_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "engine"

    def build() -> None:
        with new_engine(out) as draft:
            (draft.path / "model.onnx").write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        build()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EngineError, match="without a manifest"), new_engine(out):
        pass
    assert list(tmp_path.iterdir()) == []
