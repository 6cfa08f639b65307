"""Tables are drawn on a terminal and have one record per line elsewhere."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bita.cli.shared.output import print_table

LONG = "a value of many words " * 20
DRAWN = re.compile("[│┃─━┏┌\x1b]")


def test_each_record_is_one_line_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    rows = [("steps", LONG), ("数", "[bold]no markup[/bold]"), ("two\nlines", "\x1b[31m")]
    print_table(("name", "value"), rows, title="of all", caption="end")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "of all",
        "name        value",
        f"steps       {LONG.strip()}",
        "数          [bold]no markup[/bold]",
        "two\\nlines  \\x1b[31m",
        "end",
    ]


def test_a_table_without_rows_prints_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "b"), [])
    assert capsys.readouterr().out == "a  b\n"


@pytest.mark.parametrize("command", ["inspect ENGINE", "inspect ENGINE/adapter.safetensors"])
def test_piped_cards_have_a_line_for_each_fact(command: str, tiny_engine: Path) -> None:
    words = command.replace("ENGINE", str(tiny_engine)).split()
    environment = {**os.environ, "COLUMNS": "30"}
    result = subprocess.run(
        [sys.executable, "-m", "bita", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not DRAWN.search(result.stdout)
    lines = result.stdout.splitlines()
    assert lines[0].endswith(words[-1])
    assert len(lines) > 8
    assert all(re.match(r"(- )?[A-Za-z]", line) for line in lines)


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_gets_a_drawn_card(no_color: bool, tiny_engine: Path) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "60"}
    environment.pop("NO_COLOR", None)
    if no_color:
        environment["NO_COLOR"] = "1"
    process = subprocess.Popen(
        [sys.executable, "-m", "bita", "inspect", str(tiny_engine)],
        stdout=slave,
        env=environment,
    )
    os.close(slave)
    out = b""
    try:
        while piece := os.read(master, 65536):
            out += piece
    except OSError:  # the other end is closed
        pass
    assert process.wait(timeout=60) == 0
    text = out.decode()
    assert "│" in text
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", text) or not no_color
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())) <= 60
