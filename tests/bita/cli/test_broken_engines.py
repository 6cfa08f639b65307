"""Commands report broken and hostile files on one line: exit status 2, no traceback."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from deadlines import stopped_if_it_hangs
from engine_edits import copy_engine, edit_files, edit_manifest, give_pairs
from make_tiny_engine import write_plain_model

from bita.cli.main import main

DEEP = b"[" * 100_000
COMMANDS = (
    ("inspect", "{}"),
    ("generate", "{}", "hi", "--max-new-tokens", "2"),
    ("verify", "{}", "--limit", "1", "--max-new-tokens", "2"),
    ("calibrate", "latency", "{}", "--repeats", "1", "--max-rows", "2"),
    ("compile", "{}", "--backend", "tensorrt"),
)
TABLE = b'{"trees": [{"nodes": []}], "matches": [%s], "by_state": [[%s]]}'


def write_empty_tables(engine: Path) -> None:
    give_pairs(engine)
    edit_files(engine, {"pairs.safetensors": b""})


FAULTS: dict[str, Callable[[Path], object]] = {
    "a deep manifest": lambda e: (e / "manifest.json").write_bytes(b'{"a":' + DEEP),
    "no license": lambda e: edit_manifest(e, license=...),
    "more layers": lambda e: edit_manifest(e, num_layers=3),
    "a huge cache": lambda e: edit_manifest(e, capacity=2**40),
    "a deep tree": lambda e: edit_files(e, {"tree.json": DEEP}),
    "a tree in Latin-1": lambda e: edit_files(e, {"tree.json": b'{"nodes": "\xe9"}'}),
    "infinite matches": lambda e: edit_files(e, {"tree.json": TABLE % (b"1e999", b"0")}),
    "a list in a state": lambda e: edit_files(e, {"tree.json": TABLE % (b"0", b"[0]")}),
    "empty tables": write_empty_tables,
    "a corrupt adapter": lambda e: edit_files(e, {"adapter.safetensors": b"\xff" * 16}),
}


@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_command_reports_a_broken_engine_on_one_line(
    tiny_engine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    command: tuple[str, ...],
) -> None:
    engine = copy_engine(tiny_engine, tmp_path / "engine")
    FAULTS[fault](engine)
    assert main([part.format(engine) for part in command]) == 2
    err = capsys.readouterr().err
    assert err.startswith("bita: error: ")
    assert err.count("\n") == 1
    if command[0] != "compile":  # it may report a missing TensorRT first
        assert str(engine) in err


@pytest.mark.parametrize("content", [DEEP, b'{"nodes": "\xff"}', b'{"nodes": [3]}', b"3", None])
@pytest.mark.parametrize("flag", ["--tree", "--adapter"])
def test_broken_files_given_as_options_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, content: bytes | None
) -> None:
    path, model = tmp_path / "given", write_plain_model(tmp_path / "model")
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    command = ["engine", str(model), "--uncalibrated", "--out", str(tmp_path / "engine")]
    with stopped_if_it_hangs(20):
        assert main([*command, flag, str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("bita: error: ")
    assert str(path) in err
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    "text", ["9" * 5000, "999999999", "1," * 600 + "1", "0", "٣", "1,,2", "-1"]
)
def test_trees_that_no_engine_can_run_are_refused(
    tiny_engine: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert main(["generate", str(tiny_engine), "hi", f"--tree={text}"]) == 2
    assert capsys.readouterr().err.startswith("bita: error: ")


def test_text_from_engine_files_is_shown_literally(
    tiny_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither rich markup, which would be invalid here, nor terminal escapes take effect."""
    engine = copy_engine(tiny_engine, tmp_path / "engine")
    edit_manifest(engine, model="[/b] \x1b[2J", tuned_on="[red]all[/red]")
    report = {"tree": {"why": "[/i]\x07"}}
    edit_files(engine, {"calibration.json": json.dumps(report).encode()})
    assert main(["inspect", str(engine)]) == 0
    out = capsys.readouterr().out
    assert r"[/b] \x1b[2J" in out
    assert "[red]all[/red]" in out
    assert r"[/i]\x07" in out
    edit_files(engine, {"tree.json": b'{"nodes": 3}\x1b]0;x'})
    edit_manifest(engine, mode="\x1b[31m")
    assert main(["inspect", str(engine)]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_the_engine_may_be_the_working_directory(
    tiny_engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_engine)
    assert main(["inspect", "."]) == 0
    assert "tiny-llama" in capsys.readouterr().out
    assert main(["generate", ".", "hi", "--max-new-tokens", "2"]) == 0
