"""Costs of hostile inputs, measured by a program of tests/support in a separate process."""

import json
import subprocess
import sys
from types import ModuleType
from typing import Any

from deadlines import stopped_if_it_hangs


def costs_of(program: ModuleType) -> dict[str, dict[str, Any]]:
    """Run a program, which limits its own memory; return its lines of JSON by their "name"."""
    command = [sys.executable, str(program.__file__)]
    with stopped_if_it_hangs(300):
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return {cost["name"]: cost for cost in map(json.loads, run.stdout.splitlines())}
