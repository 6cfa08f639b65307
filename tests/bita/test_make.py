"""`make engine` and `make adapter` pass names to the commands exactly as typed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from make_tiny_engine import write_plain_model
from paths import ROOT
from speed import slow_but

from bita.engine import open_engine

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

NAMES = (
    *("my models/tiny llama", "tiny:q4", "co$t", "a$(b", "a$$b", "${HOME}", "it's", 'do"ble'),
    *("a#b", "50%", "-dash", "--help", "semi;colon", "back`tick`", "a\\b", "*", "ünï", "a=b", "&"),
)
STAMPS = (".export", ".model", ".tune", ".tensorrt-rtx", ".dev", ".native", ".test")
ECHO = f"""#!{sys.executable}
import json, sys
print(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """Write an environment whose `bita` prints its arguments."""
    program = tmp_path / "venv" / "bin" / "bita"
    program.parent.mkdir(parents=True)
    program.write_text(ECHO)
    program.chmod(0o755)
    return tmp_path / "venv"


def make(venv: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "-f", str(ROOT / "Makefile"), "--no-print-directory", f"VENV={venv}"]
    for stamp in STAMPS:
        command += ["-o", str(venv / stamp)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *sys.path]))}
    environment.pop("MAKEFLAGS", None)
    return subprocess.run(
        [*command, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def arguments(venv: Path, *words: str) -> list[str]:
    result = make(venv, *words, cwd=venv.parent)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("name", slow_but(NAMES, "-dash", "a#b", "50%"))
def test_names_arrive_exactly_as_typed(name: str, venv: Path) -> None:
    words = [f"{variable}={name}" for variable in ("MODEL", "OUT", "ADAPTER", "TREE")]
    found = arguments(venv, "engine", *words)
    options = [f"--adapter={name}", f"--tree={name}", f"--out={name}"]
    assert found == ["engine", *options, "--if-needed", "--", name]
    found = arguments(venv, "adapter", f"MODEL={name}", f"PROMPTS={name}", "MINUTES=3")
    assert found == ["tune", f"--prompts={name}", "--max-minutes=3", "--", name]


def test_variables_become_engine_options(venv: Path) -> None:
    assert arguments(venv, "engine", "MODEL=m") == ["engine", "--if-needed", "--", "m"]
    words = ("UNCALIBRATED=1", "CAPACITY=64", "PRECISION=fp32", "CALIBRATION_PROMPTS=p")
    options = ["--precision=fp32", "--calibration-prompts=p", "--capacity=64", "--uncalibrated"]
    found = arguments(venv, "engine", "MODEL=m", *words)
    assert found == ["engine", *options, "--if-needed", "--", "m"]


def test_an_empty_adapter_means_an_untuned_engine(venv: Path) -> None:
    found = arguments(venv, "engine", "MODEL=m", "ADAPTER=")
    assert found == ["engine", "--adapter=none", "--if-needed", "--", "m"]


def test_missing_and_unknown_variables_are_reported(venv: Path, tmp_path: Path) -> None:
    result = make(venv, "engine", cwd=tmp_path)
    assert result.returncode == 2
    assert "make: give a model" in result.stderr
    result = make(venv, "engine", "MODLE=x", cwd=tmp_path)
    assert result.returncode == 2
    assert "unknown variable MODLE" in result.stderr
    result = make(venv, "bench-options", "PROMPTS=my prompts", cwd=tmp_path)
    assert "make: PROMPTS my prompts does not exist" in result.stderr
    result = make(venv, "bench-options", "LIMIT=many $", cwd=tmp_path)
    assert "make: LIMIT many $ is not a number of prompts" in result.stderr


@pytest.mark.slow
def test_an_engine_is_built_for_a_model_with_a_space_in_its_name(
    venv: Path, tmp_path: Path
) -> None:
    """The real program runs twice: the first run builds the engine, the second one keeps it."""
    program = venv / "bin" / "bita"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bita "$@"\n')
    write_plain_model(tmp_path / "my models" / "tiny llama:q4")
    words = ("engine", "MODEL=my models/tiny llama:q4", "UNCALIBRATED=1", "PRECISION=fp32")
    for outcome in ("built in", "up to date"):
        result = make(venv, *words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("engines/tiny-llama-q4-fp32: ")
        assert outcome in result.stdout
        assert "untuned: " in result.stdout.splitlines()[-1]
    engine = open_engine(tmp_path / "engines" / "tiny-llama-q4-fp32", check_hashes=True)
    assert engine.manifest.model == "my models/tiny llama:q4"
    result = make(venv, "engine", "MODEL=no such model", cwd=tmp_path)
    assert result.returncode == 2
    assert "bita: error: no model 'no such model'" in result.stderr
