"""A finished directory takes an engine's place at once, or file by file and can be completed."""

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
    """The process ends here."""


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_engine, tmp_path / "engine"))


@pytest.fixture
def finished(tiny_engine: Path, tmp_path: Path) -> Path:
    """A revision of the engine: another tree, and a report."""
    shutil.copytree(tiny_engine, tmp_path / "revised")
    engine = open_engine(tmp_path / "revised")
    engine = revise_engine(engine, {"tree.json": '{"nodes": []}', "calibration.json": "{}"})
    return engine.path


def cannot(code: int) -> Callable[[Path, Path], bool]:
    """A kernel that answers renameat2 with an error."""

    def exchange(one: Path, other: Path) -> bool:
        if code not in directory_swap.CANNOT:
            raise OSError(code, os.strerror(code))
        return False

    return exchange


def die_at(number: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the process die before its rename of this number; gives the names renamed before."""
    done: list[str] = []

    def counted(rename: Callable[..., None]) -> Callable[..., None]:
        def renamed(source: Path, target: Path) -> None:
            if len(done) == number:
                raise KilledError
            rename(source, target)
            done.append(Path(target).name)

        return renamed

    monkeypatch.setattr(os, "rename", counted(os.rename))
    monkeypatch.setattr(os, "replace", counted(os.replace))
    return done


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_directories_change_names_at_once(engine: Path, finished: Path) -> None:
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
def test_file_by_file_where_there_is_no_exchange(
    code: int, engine: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_swap, "_exchange", cannot(code))
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
    monkeypatch.setattr(directory_swap, "_exchange", cannot(errno.EACCES))
    with pytest.raises(PermissionError):
        put(finished, Place.of(engine))
    assert contents(engine) == before


@pytest.mark.parametrize("who", ["reader", "writer"])
@pytest.mark.parametrize("number", range(11))
def test_a_killed_exchange_is_completed(
    number: int, who: str, engine: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the process dies, the next one sees the engine of before or of after, whole."""
    before, after = contents(engine), contents(finished)
    monkeypatch.setattr(directory_swap, "_exchange", cannot(errno.EINVAL))
    with monkeypatch.context() as patch:
        done = die_at(number, patch)
        try:
            put(finished, Place.of(engine))
        except KilledError:
            assert len(done) == number
        else:
            assert len(done) <= number  # there are not more renames
    if who == "writer":
        with writing(engine):
            pass
    else:
        open_engine(engine, check_hashes=True)
    assert contents(engine) == (after if done else before)


def test_completing_twice_at_once_is_harmless(engine: Path, finished: Path) -> None:
    wanted = contents(finished)
    os.rename(finished, engine / INCOMING)
    os.replace(engine / INCOMING / "tree.json", engine / "tree.json")  # by the other one
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
    monkeypatch.setattr(directory_swap, "_exchange", cannot(errno.EBUSY))
    put(finished, Place.of(engine))
    assert contents(engine) == wanted
    assert not finished.exists()


def test_linked_files_take_their_places_too(engine: Path, finished: Path) -> None:
    """The kernel renames nothing where both names lead to one file."""
    (finished / "model.onnx").unlink()
    os.link(engine / "model.onnx", finished / "model.onnx")
    os.rename(finished, engine / INCOMING)
    complete(engine)
    open_engine(engine, check_hashes=True)
    assert not (engine / INCOMING).exists()


def test_who_may_not_complete_it_is_told(
    engine: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.rename(finished, engine / INCOMING)

    def refused(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("bita.engine_access.try_sole_writer", refused)
    with pytest.raises(EngineError, match=r"cannot be completed from here.*bita inspect"):
        open_engine(engine)


@pytest.mark.parametrize("name", ["../victim", "/tmp/victim", "..", "a/b"])
def test_files_on_their_way_lead_nowhere_else(name: str, tiny_engine: Path, tmp_path: Path) -> None:
    """What a strange engine holds as `.engine.incoming` is not moved out of it."""
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
