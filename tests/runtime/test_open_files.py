"""An open engine does not change, whatever happens to its files."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_tiny_engine import write_plain_model
from random_drafts import prompt_ids
from speed import thorough_but

from bita.adapter import random_adapter
from bita.engine import GRAPH_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from bita.errors import EngineError
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.runtime import session as session_module
from bita.runtime.backends import ort_backend
from bita.runtime.session import Session
from bita.runtime.text.grammar import Grammar
from bita.tree import Tree

PROMPT = prompt_ids(1)


@pytest.fixture(scope="module")
def other_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine with the shape of the tiny engine but other weights."""
    folder = tmp_path_factory.mktemp("other")
    checkpoint = open_checkpoint(str(write_plain_model(folder / "model", seed=1)))
    adapter = random_adapter(identify(checkpoint), 3, 2, 0.4, seed=5)
    options = BuildOptions("fp32", "tree", 384, Tree.triangle())
    build_engine(check_build(checkpoint, adapter, folder / "engine", options))
    return folder / "engine"


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_engine, tmp_path / "engine")


def generate_text(session: Session) -> list[int]:
    session.forget()
    return session.generate(PROMPT, 20, ignore_eos=True).token_ids


def replace_directory(engine: Path, other: Path) -> None:
    """Replace the directory, as a build that overwrites an engine does."""
    shutil.copytree(other, engine.with_name("new"))
    engine.rename(engine.with_name("old"))
    engine.with_name("new").rename(engine)
    shutil.rmtree(engine.with_name("old"))


def replace_files(engine: Path, other: Path) -> None:
    """Replace each file by renaming, as rsync does."""
    for path in other.iterdir():
        shutil.copyfile(path, engine / ".new")
        os.replace(engine / ".new", engine / path.name)


def remove(engine: Path, other: Path) -> None:
    shutil.rmtree(engine)


@pytest.mark.parametrize("change", [replace_directory, replace_files, remove])
def test_replaced_or_removed_files_do_not_affect_an_open_engine(
    engine: Path, other_engine: Path, change: Callable[[Path, Path], None]
) -> None:
    session = Session.open(engine, num_threads=1)
    expected = generate_text(session)
    talk = session.conversation()
    talk.send("Hello", max_new_tokens=8).run()
    half = session.stream(PROMPT, 20, ignore_eos=True)
    next(half)
    change(engine, other_engine)
    assert half.run().token_ids == expected
    assert generate_text(session) == expected
    assert generate_text(session.using(tree=Tree.root_only())) == expected
    second = talk.send("Again", max_new_tokens=8).run()
    session.forget()
    assert second.token_ids == session.generate(list(second.prompt_ids), 8).token_ids
    if engine.exists():
        assert generate_text(Session.open(engine, num_threads=1)) != expected


def test_a_grammar_uses_the_tokens_read_at_opening(engine: Path) -> None:
    pytest.importorskip("llguidance")
    grammar = Grammar.regex("[a-c]{3,20}")
    session = Session.open(engine, num_threads=1)
    before = Session.open(engine, num_threads=1).generate(PROMPT, 9, grammar=grammar)
    (engine / TOKENIZER_FILE).write_text("{}")
    assert session.generate(PROMPT, 9, grammar=grammar).text == before.text


def overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def flip_last_bits(content: bytes) -> bytes:
    return content[:-400] + bytes(byte ^ 1 for byte in content[-400:])


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "some bytes": flip_last_bits,
    "longer": lambda content: content + b"\0",
    "cut": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
}


@pytest.mark.slow
@pytest.mark.parametrize("change", thorough_but(CHANGES, "half"))
def test_overwritten_weights_are_an_error(engine: Path, change: str) -> None:
    """It runs in another process: reading past the end of a mapped file kills the process."""
    script = f"""
import sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
from test_open_files import CHANGES, PROMPT, WEIGHTS_FILE, generate_text, overwrite
from bita.errors import EngineError
from bita.runtime.session import Session

session = Session.open({str(engine)!r}, num_threads=1)
expected = generate_text(session)
half = session.stream(PROMPT, 20, ignore_eos=True)
next(half)
path = Path({str(engine)!r}) / WEIGHTS_FILE
content = path.read_bytes()
overwrite(path, CHANGES[{change!r}](content))
for run in (half.run, lambda: generate_text(session)):
    try:
        run()
    except EngineError as error:
        print(error)
assert half.finish_reason == "cancelled"
assert expected[: len(half.token_ids)] == half.token_ids
overwrite(path, content)
assert generate_text(session) == expected
"""
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {folder!r})\n{script}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    fault = f"{engine / WEIGHTS_FILE} was changed while the engine was open; open the engine again"
    assert done.stdout.splitlines() == [fault, fault]


def test_restoring_the_file_time_does_not_hide_a_change(engine: Path) -> None:
    session = Session.open(engine, num_threads=1)
    path = engine / WEIGHTS_FILE
    before = path.stat()
    overwrite(path, flip_last_bits(path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(EngineError, match="was changed while the engine was open"):
        generate_text(session)


def test_changed_times_links_and_modes_are_allowed(engine: Path, tmp_path: Path) -> None:
    session = Session.open(engine, num_threads=1)
    expected = generate_text(session)
    os.utime(engine / WEIGHTS_FILE, (1, 1))
    assert generate_text(session) == expected
    os.link(engine / WEIGHTS_FILE, tmp_path / "link")
    assert generate_text(session) == expected
    (engine / WEIGHTS_FILE).chmod(0o400)
    assert generate_text(session) == expected


@pytest.mark.parametrize("name", [TOKENIZER_FILE, GRAPH_FILE, WEIGHTS_FILE])
def test_a_change_after_the_hashes_were_checked_is_an_error(
    engine: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_tree = session_module.read_tree

    def read_and_change(opened: Any) -> Any:
        (engine / name).write_bytes((engine / name).read_bytes() + b" ")
        return read_tree(opened)

    monkeypatch.setattr(session_module, "read_tree", read_and_change)
    with pytest.raises(EngineError, match=f"{name}"):
        Session.open(engine, num_threads=1)


def test_weights_replaced_while_loading_are_an_error(
    engine: Path, other_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_session = ort_backend.load_session

    def replace_and_load(*arguments: Any) -> Any:
        replace_files(engine, other_engine)
        return load_session(*arguments)

    monkeypatch.setattr(ort_backend, "load_session", replace_and_load)
    with pytest.raises(EngineError, match="was changed while it was loaded"):
        ort_backend.OrtBackend(session_module.open_engine(engine), num_threads=1)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_a_dropped_session_closes_its_file(engine: Path) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    session = Session.open(engine, num_threads=1)
    generate_text(session)
    del session
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_can_use_the_engine(engine: Path, other_engine: Path) -> None:
    session = Session.open(engine, num_threads=1)
    expected = generate_text(session)
    child = os.fork()
    if child == 0:
        try:
            replace_directory(engine, other_engine)
            os._exit(0 if generate_text(session) == expected else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert generate_text(session) == expected
