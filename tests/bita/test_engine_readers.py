"""Readers see a complete old or new engine while it is written; revisions never undo others."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bita import engine_access
from bita.engine import Engine, move_engine, open_engine, revise_engine, revising
from bita.engine_access import MAX_READS, undisturbed
from bita.errors import EngineError
from bita.runtime.session import Session
from bita.runtime.text.grammar import Grammar


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Engine:
    shutil.copytree(tiny_engine, tmp_path / "engine")
    return open_engine(tmp_path / "engine")


def report(number: int) -> dict[str, str | bytes]:
    return {"calibration.json": f'{{"number": {number}}}'}


def test_a_read_disturbed_by_a_writer_is_repeated(engine: Engine) -> None:
    seen = []

    @undisturbed
    def read(path: Path) -> str:
        first = (path / "tree.json").read_text()
        seen.append(first)
        if len(seen) == 1:
            revise_engine(engine, {"tree.json": "{}"})
        return first + (path / "tree.json").read_text()

    assert read(engine.path) == "{}{}"
    assert len(seen) == 2


def test_an_error_from_a_disturbed_read_is_discarded(engine: Engine) -> None:
    calls = []

    @undisturbed
    def read(unused: int, path: str | Path) -> int:
        calls.append(unused)
        if len(calls) == 1:
            revise_engine(engine, report(1))
            raise ValueError("a mixture")
        return unused

    assert read(3, path=str(engine.path)) == 3


def test_an_error_of_the_engine_itself_is_raised_at_once(engine: Engine) -> None:
    calls = []

    @undisturbed
    def read(path: Path) -> None:
        calls.append(path)
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        read(engine.path)
    assert len(calls) == 1


def test_a_reader_that_is_always_disturbed_locks_out_writers(engine: Engine) -> None:
    calls, until = list[bytes](), threading.Event()

    def write() -> None:
        while not until.is_set():
            revise_engine(open_engine(engine.path), report(len(calls)))

    writer = threading.Thread(target=write)

    @undisturbed
    def read(path: Path) -> bool:
        calls.append((path / "manifest.json").read_bytes())
        time.sleep(0.05)
        return calls[-1] == (path / "manifest.json").read_bytes()

    writer.start()
    assert read(engine.path)
    until.set()
    writer.join()
    assert len(calls) <= MAX_READS + 1


def test_a_reader_that_cannot_lock_out_writers_gives_up(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[Engine]()
    mine = engine_access.sole_writer

    @undisturbed
    def read(path: Path) -> None:
        monkeypatch.setattr(engine_access, "sole_writer", mine)
        calls.append(revise_engine(open_engine(path), report(len(calls))))
        monkeypatch.setattr(engine_access, "sole_writer", refused)

    def refused(path: Path, subject: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(EngineError, match="was replaced again and again while it was read"):
        read(engine.path)
    assert len(calls) == MAX_READS


def test_a_session_never_mixes_two_engines(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is replaced after its manifest is read and before its adapter is."""
    from bita.runtime import session

    wanted, loads = Session.open(engine.path).generate("Hello", 8).text, []
    read_tree = session.read_tree

    def replaced(opened: Engine) -> object:
        loads.append(opened.files["tree.json"])
        if len(loads) == 1:
            revise_engine(engine, {"tree.json": '{"nodes": []}'})
        return read_tree(opened)

    monkeypatch.setattr(session, "read_tree", replaced)
    opened = Session.open(engine.path)
    assert opened.tree.is_ar
    assert opened.engine.files == open_engine(engine.path).files
    assert len(loads) == 2
    assert opened.generate("Hello", 8).text == wanted


def test_a_revision_of_a_replaced_engine_is_refused(
    engine: Engine, tiny_engine: Path, tmp_path: Path
) -> None:
    """A calibration that read one engine must not put its files over a newly built one."""
    shutil.copytree(tiny_engine, tmp_path / "b")
    built = revise_engine(open_engine(tmp_path / "b"), {"tree.json": '{"nodes": []}'})
    now = move_engine(built, engine.path)
    with pytest.raises(EngineError, match="was written by another process after this one read it"):
        revise_engine(engine, report(1))
    assert open_engine(engine.path, check_hashes=True).files == now.files


def test_a_second_revision_of_the_same_reading_is_refused(engine: Engine) -> None:
    revise_engine(engine, report(1))
    with pytest.raises(EngineError, match="nothing was changed; run the command again"):
        revise_engine(engine, report(2))
    assert (engine.path / "calibration.json").read_text() == report(1)["calibration.json"]


def test_a_waiting_revision_reads_the_result_of_the_other_writer(engine: Engine) -> None:
    """A command that had to wait works on the result of the other one."""
    seen: list[bytes] = []

    def command() -> None:
        with revising(engine.path) as opened:
            seen.append(opened.file("calibration.json").read_bytes())
            revise_engine(opened, report(2))

    with revising(engine.path) as opened:
        thread = threading.Thread(target=command)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        revise_engine(opened, report(1))
    thread.join(20)
    assert seen == [str(report(1)["calibration.json"]).encode()]
    assert open_engine(engine.path).file("calibration.json").read_text().endswith("2}")


def test_a_reader_gives_up_on_a_stopped_writer(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader waits for incoming files, and fails with a reason if their writer has stopped."""
    monkeypatch.setattr(engine_access, "PATIENCE_S", 0.2)
    finished = shutil.copytree(engine.path, tmp_path / "finished")
    finished.rename(engine.path / ".engine.incoming")

    def stopped() -> None:
        with engine_access.sole_writer(engine_access.Place.of(engine.path).lock, "x"):
            ready.set()
            until.wait()

    ready, until = threading.Event(), threading.Event()
    thread = threading.Thread(target=stopped)
    thread.start()
    assert ready.wait(20)
    with pytest.raises(EngineError, match="its writer does not continue"):
        open_engine(engine.path)
    until.set()
    thread.join()
    open_engine(engine.path, check_hashes=True)
    assert not (engine.path / ".engine.incoming").exists()


@pytest.mark.parametrize("harm", [lambda path: path.write_text("{}"), Path.unlink])
def test_a_grammar_uses_the_tokenizer_that_was_opened(
    harm: Callable[[Path], object], engine: Engine
) -> None:
    """The grammar's tokens are built for the first grammar, long after the session was opened."""
    pytest.importorskip("llguidance")
    session = Session.open(engine.path, num_threads=1)
    harm(engine.file("tokenizer.json"))
    assert session.generate("Hello", 8, grammar=Grammar.choice(["yes", "no"])).text in ("yes", "no")
