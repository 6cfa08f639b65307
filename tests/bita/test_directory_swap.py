"""A finished directory replaces an engine at once, or file by file in a way that can be resumed."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bita import directory_swap
from bita.directory_swap import complete, put
from bita.engine import open_engine, revise_engine
from bita.engine_access import writing
from bita.engine_place import INCOMING, Place
from bita.errors import EngineError


class KilledError(BaseException):
    """Stands for the death of the process."""


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_engine, tmp_path / "engine"))


@pytest.fixture
def finished(tiny_engine: Path, tmp_path: Path) -> Path:
    """Return a revision of the engine with another tree and a report."""
    shutil.copytree(tiny_engine, tmp_path / "revised")
    engine = open_engine(tmp_path / "revised")
    engine = revise_engine(engine, {"tree.json": '{"nodes": []}', "calibration.json": "{}"})
    return engine.path


def failing_exchange(code: int) -> Callable[[Path, Path], bool]:
    """Return a replacement of `_exchange` for a kernel where renameat2 fails with `code`."""

    def exchange(one: Path, other: Path) -> bool:
        if code not in directory_swap.CANNOT:
            raise OSError(code, os.strerror(code))
        return False

    return exchange


def die_at(number: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Raise KilledError instead of the rename with this number; return the names renamed so far."""
    done: list[str] = []

    def count_calls(rename: Callable[..., None]) -> Callable[..., None]:
        def rename_or_die(source: Path, target: Path) -> None:
            if len(done) == number:
                raise KilledError
            rename(source, target)
            done.append(Path(target).name)

        return rename_or_die

    monkeypatch.setattr(os, "rename", count_calls(os.rename))
    monkeypatch.setattr(os, "replace", count_calls(os.replace))
    return done


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_directories_are_exchanged_at_once(engine: Path, finished: Path) -> None:
    if not directory_swap._exchange(engine, finished):
        pytest.skip("needs renameat2 with RENAME_EXCHANGE")
    directory_swap._exchange(engine, finished)
    wanted, inode = contents(finished), finished.stat().st_ino
    put(finished, Place.of(engine))
    assert contents(engine) == wanted
    assert engine.stat().st_ino == inode
    assert not finished.exists()


def test_the_first_engine_is_only_renamed(finished: Path, tmp_path: Path) -> None:
    wanted = contents(finished)
    put(finished, Place.of(tmp_path / "new"))
    assert contents(tmp_path / "new") == wanted


@pytest.mark.parametrize("code", directory_swap.CANNOT)
def test_files_are_replaced_one_by_one_without_renameat2(
    code: int, engine: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_swap, "_exchange", failing_exchange(code))
    (engine / "pairs.safetensors").write_text("of the engine before")
    wanted, inode = contents(finished), engine.stat().st_ino
    put(finished, Place.of(engine))
    assert contents(engine) == wanted
    assert engine.stat().st_ino == inode
    assert not finished.exists()


def test_other_faults_leave_the_engine_as_it_was(
    engine: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(engine)
    monkeypatch.setattr(directory_swap, "_exchange", failing_exchange(errno.EACCES))
    with pytest.raises(PermissionError):
        put(finished, Place.of(engine))
    assert contents(engine) == before


@pytest.mark.parametrize("who", ["reader", "writer"])
@pytest.mark.parametrize("number", range(11))
def test_a_killed_exchange_is_completed(
    number: int, who: str, engine: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the process dies, the next one sees the complete old or the complete new engine."""
    before, after = contents(engine), contents(finished)
    monkeypatch.setattr(directory_swap, "_exchange", failing_exchange(errno.EINVAL))
    with monkeypatch.context() as patch:
        done = die_at(number, patch)
        try:
            put(finished, Place.of(engine))
        except KilledError:
            assert len(done) == number
        else:
            assert len(done) <= number  # there are no further renames
    if who == "writer":
        with writing(engine):
            pass
    else:
        open_engine(engine, check_hashes=True)
    assert contents(engine) == (after if done else before)


def test_completing_twice_at_once_is_harmless(engine: Path, finished: Path) -> None:
    wanted = contents(finished)
    os.rename(finished, engine / INCOMING)
    os.replace(engine / INCOMING / "tree.json", engine / "tree.json")  # as the other process would
    complete(engine)
    complete(engine)
    assert contents(engine) == wanted


def test_a_draft_on_another_file_system_is_copied_first(
    engine: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, wanted = os.rename, contents(finished)

    def across(source: Path, target: Path) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, "across")
        rename(source, target)

    monkeypatch.setattr(os, "rename", across)
    monkeypatch.setattr(directory_swap, "_exchange", failing_exchange(errno.EBUSY))
    put(finished, Place.of(engine))
    assert contents(engine) == wanted
    assert not finished.exists()


def test_hard_linked_files_are_replaced_too(engine: Path, finished: Path) -> None:
    """A rename does nothing when both names are hard links to one file."""
    (finished / "model.onnx").unlink()
    os.link(engine / "model.onnx", finished / "model.onnx")
    os.rename(finished, engine / INCOMING)
    complete(engine)
    open_engine(engine, check_hashes=True)
    assert not (engine / INCOMING).exists()


def test_a_reader_without_permission_to_complete_gets_an_error(
    engine: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.rename(finished, engine / INCOMING)

    def refused(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("bita.engine_access.try_sole_writer", refused)
    with pytest.raises(EngineError, match=r"cannot be completed from here.*bita inspect"):
        open_engine(engine)


@pytest.mark.parametrize("name", ["../victim", "/tmp/victim", "..", "a/b"])
def test_incoming_files_cannot_leave_the_engine(
    name: str, tiny_engine: Path, tmp_path: Path
) -> None:
    """Files in the `.engine.incoming` of an untrusted engine are not moved out of it."""
    engine = tmp_path / "engine"
    shutil.copytree(tiny_engine, engine)
    (tmp_path / "victim").write_text("mine")
    (engine / "victim").write_text("theirs")
    incoming = engine / ".engine.incoming"
    incoming.mkdir()
    entry = {"bytes": 6, "sha256": "0" * 64}
    (incoming / "manifest.json").write_text(json.dumps({"files": {name: entry}}))
    with pytest.raises(EngineError):
        open_engine(engine)
    assert (tmp_path / "victim").read_text() == "mine"
    assert (engine / "victim").read_text() == "theirs"
