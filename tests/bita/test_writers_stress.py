"""Concurrent writers and readers of one engine, some killed; see support/stress_writers.py."""

import subprocess
import sys

import pytest
from paths import ROOT
from speed import thorough_but

SCRIPT = ROOT / "tests" / "support" / "stress_writers.py"


def stress(*args: object) -> None:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, (result.stdout, result.stderr)
    assert "'whole'" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario", thorough_but(["many revisions and a build", "file by file"], "file by file")
)
def test_no_engine_is_mixed_or_lost(scenario: str) -> None:
    stress("--rounds", 1, scenario)


@pytest.mark.thorough
def test_no_command_damages_what_another_one_writes() -> None:
    stress("--rounds", 3, "--seed", 7)
