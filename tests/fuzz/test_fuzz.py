"""Every parser accepts a mutated input or refuses it with one of the project's own errors."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import running
from running import Target, fuzz

from bita.errors import ModelError

RUN = Path(__file__).with_name("run.py")
SECONDS = 20


@pytest.mark.slow
def test_parsers_survive_mutated_inputs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(RUN), "--seconds", str(SECONDS), "--seed", "0"],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "0 faults" in done.stdout
    assert ": 0 executions" not in done.stdout


def _target(what: str) -> Target:
    kept = []

    def execute(rng: object) -> None:
        match what:
            case "refuses":
                raise ModelError("no model")
            case "crashes":
                raise KeyError("x")
            case "dies":
                os._exit(7)
            case "is slow":
                began = time.process_time()
                while time.process_time() - began < 0.2:
                    pass
            case "hangs":
                time.sleep(60)
            case "grows":
                kept.append(bytearray(b"x") * (3 << 30))

    return Target(what, lambda _: execute, (ModelError,))


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("crashes", "KeyError test_fuzz.py"),
        ("dies", "the process died (exit code 7)"),
        ("is slow", "took more than 0.1 s"),
        ("hangs", "hangs"),
        ("grows", "MemoryError test_fuzz.py"),
    ],
)
def test_every_kind_of_fault_is_found(
    tmp_path: Path, what: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "MAX_SECONDS", 0.1)
    monkeypatch.setattr(running, "HANG_SECONDS", 1.0)
    outcome = fuzz(_target(what), tmp_path, 0, 2)
    ((found, numbers),) = outcome.faults.items()
    assert found.startswith(fault)
    assert numbers == [0, 1]
    assert outcome.executions == 2


def test_accepted_and_refused_inputs_are_counted(tmp_path: Path) -> None:
    assert fuzz(_target("refuses"), tmp_path, 0, 50).refused == 50
    taken = fuzz(_target("returns"), tmp_path, 0, 50)
    assert (taken.taken, taken.refused, taken.faults) == (50, 0, {})
