"""Tests of files that are written completely or not at all."""

import os
import threading
from pathlib import Path

import pytest

from bita.files import replace_file, write_whole


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize(
    ("data", "stored"),
    [("ä\n", b"\xc3\xa4\n"), (b"\x00\r\n", b"\x00\r\n"), (memoryview(b"plan"), b"plan")],
)
def test_a_file_holds_exactly_the_data(
    tmp_path: Path, data: str | bytes | memoryview, stored: bytes
) -> None:
    path = tmp_path / "file"
    path.write_text("a longer text of before")
    write_whole(path, data)
    assert path.read_bytes() == stored
    assert names(tmp_path) == ["file"]


def test_a_failure_in_the_middle_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")

    def fail_in_the_middle() -> None:
        with replace_file(path) as partial:
            partial.write_text("half of the n")
            assert path.read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_the_middle()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_failure_of_the_first_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "file", "\udc80")
    assert names(tmp_path) == []


def test_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    """One thread writes the file while another is halfway through; the last to finish wins."""
    path = tmp_path / "file"
    in_the_middle, first_ended = threading.Event(), threading.Event()

    def first() -> None:
        in_the_middle.wait()
        write_whole(path, "first")
        first_ended.set()

    thread = threading.Thread(target=first)
    thread.start()
    with replace_file(path) as partial:
        assert f".{os.getpid()}-" in partial.name  # unique among processes too
        partial.write_text("sec")
        in_the_middle.set()
        first_ended.wait()
        assert path.read_text() == "first"
        with partial.open("a") as file:
            file.write("ond")
    thread.join()
    assert path.read_text() == "second"
    assert names(tmp_path) == ["file"]


def test_errors_name_the_requested_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"'[^']*/nowhere/file'$"):
        write_whole(tmp_path / "nowhere" / "file", "text")


def test_a_directory_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError, match=r"file'$"):
        write_whole(tmp_path / "file", "text")
    assert names(tmp_path) == ["file"]
