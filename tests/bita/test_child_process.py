"""Python processes import no module from the working directory, whatever files it has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from bita.child_process import python_command

SHADOWS = ("numpy", "json", "re", "onnxruntime", "rich", "argparse", "runpy", "encodings", "bita")
DEFINITION = "open({mark!r}, 'a').write({name!r})\n"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Write modules that leave a mark when they are imported."""
    directory = tmp_path / "here"
    directory.mkdir()
    for name in SHADOWS:
        text = DEFINITION.format(mark=str(tmp_path / "mark"), name=name)
        (directory / f"{name}.py").write_text(text)
    (directory / "pathlib").mkdir()
    (directory / "pathlib" / "__init__.py").write_text(text)
    return directory


def run(
    command: list[str], directory: Path, **variables: str
) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **variables}
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60
    )


def test_a_child_imports_only_what_its_parent_would(
    hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parent in a notebook also has the working directory in its own search path."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    done = run(python_command("bita", "--version"), hostile)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("bita-edge ")
    assert not (hostile.parent / "mark").exists()


def test_arguments_arrive_unchanged(hostile: Path, tmp_path: Path) -> None:
    (tmp_path / "arguments.py").write_text("import sys; print(__name__, sys.argv[1:])")
    sys.path.insert(0, str(tmp_path))
    try:
        command = python_command("arguments", "-x", "a b", "", "'\"\n")
    finally:
        sys.path.remove(str(tmp_path))
    done = run(command, hostile)
    assert done.stdout == "__main__ ['-x', 'a b', '', '\\'\"\\n']\n", done.stderr


def test_the_command_line_imports_nothing_from_the_working_directory(hostile: Path) -> None:
    """The exceptions are `bita` and `runpy`, which `python -m bita` finds before our first line."""
    for name in ("bita", "runpy"):
        (hostile / f"{name}.py").unlink()
    done = run([sys.executable, "-m", "bita", "--version"], hostile, PYTHONPATH=str(ROOT))
    assert done.stdout.startswith("bita-edge "), done.stderr
    assert not (hostile.parent / "mark").exists()


def test_a_checkout_of_the_source_runs_from_its_directory() -> None:
    done = run([sys.executable, "-m", "bita", "--version"], ROOT, PYTHONPATH="")
    assert done.stdout.startswith("bita-edge "), done.stderr
