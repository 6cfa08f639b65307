"""Tests of the lock that allows one writer at a time and ends with its process."""

import errno
import fcntl
import logging
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bita import writer_lock
from bita.writer_lock import release, sole_writer, try_sole_writer

fork = multiprocessing.get_context("fork")


def hold(path: Path, ready: Any, until: Any) -> None:
    with sole_writer(path, "x"):
        ready.set()
        until.wait()


def start_holder(path: Path) -> tuple[Any, Any]:
    ready, until = fork.Event(), fork.Event()
    holder = fork.Process(target=hold, args=(path, ready, until))
    holder.start()
    assert ready.wait(20)
    return holder, until


def test_a_second_writer_waits_and_names_the_holder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / ".engine.lock"
    holder, until = start_holder(path)
    threading.Timer(0.3, until.set).start()
    began = time.monotonic()
    with caplog.at_level(logging.WARNING), sole_writer(path, "engines/mine") as is_first:
        assert is_first
        assert time.monotonic() - began > 0.2
    (line,) = caplog.messages
    assert line.startswith("waiting for engines/mine: it is being written by `")
    assert f"process {holder.pid} on " in line
    holder.join()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_releases_its_lock(tmp_path: Path) -> None:
    path = tmp_path / ".engine.lock"
    holder, _ = start_holder(path)
    assert not try_sole_writer(path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert path.exists()
    assert try_sole_writer(path)
    release(path)
    assert not path.exists()


def test_a_fork_of_the_holder_does_not_hold_the_lock(tmp_path: Path) -> None:
    """Otherwise a running child would keep the lock of a killed parent."""
    path = tmp_path / ".engine.lock"
    until = fork.Event()
    with sole_writer(path, "x"):
        child = fork.Process(target=until.wait)
        child.start()
    with sole_writer(path, "x") as is_first:
        assert is_first
    until.set()
    child.join()


def test_a_thread_may_nest_the_lock_and_another_thread_waits(tmp_path: Path) -> None:
    path, order = tmp_path / ".engine.lock", list[str]()

    def other() -> None:
        with sole_writer(path, "x") as is_first:
            order.append(f"other {is_first}")

    thread = threading.Thread(target=other)
    with sole_writer(path, "x") as is_first:
        assert is_first
        thread.start()
        with sole_writer(path, "x") as is_first:
            assert not is_first
        thread.join(0.2)
        order.append("mine")
    thread.join(20)
    assert order == ["mine", "other True"]


def count_up(path: Path, counter: Path, rounds: int) -> None:
    for _ in range(rounds):
        with sole_writer(path, "x"):
            number = int(counter.read_text())
            time.sleep(0.0005)
            counter.write_text(str(number + 1))


def test_a_removed_lock_file_lets_no_second_writer_in(tmp_path: Path) -> None:
    """Each holder removes the file while others wait; none of them may lock a removed file."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    args = (tmp_path / ".lock", counter, 40)
    writers = [fork.Process(target=count_up, args=args) for _ in range(5)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert counter.read_text() == "200"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_file_systems_without_locks_give_a_warning(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(descriptor: int, flags: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with sole_writer(tmp_path / ".lock", "engines/mine") as is_first:
        assert not is_first
    assert "engines/mine is on a file system without locks" in caplog.text


def test_other_locking_errors_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, flags: int) -> None:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(PermissionError), sole_writer(tmp_path / ".lock", "x"):
        pass


def test_the_text_of_a_lock_file_is_shown_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_bytes(b"a\x1b[31m\nb\xff" + b"c" * 9999)
    text = writer_lock._text(path)
    assert text.isprintable()
    assert len(text) <= writer_lock.MAX_TEXT
    path.write_bytes(b"")
    assert writer_lock._text(path) == "another process"
