"""Programs in build/cpp that are built with libbita for tests."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from answer_tool import BUILD, AnswerTool, tool_command


def cpp_program(name: str) -> Path:
    """Return the file of a program; skip the test if it is not built (`make cpp-programs`)."""
    path = BUILD / name
    if not path.is_file():
        pytest.skip(f"{path} is not built: make cpp-programs")
    return path


def answer_tool(engine: Path, options: Mapping[str, Any] | None = None) -> AnswerTool:
    """Start a process that answers on one thread, with these options of the engine."""
    cpp_program("answer_tool")
    return AnswerTool(tool_command(engine, {"num_threads": 1, **(options or {})}))


def open_fault(engine: Path, options: Mapping[str, Any] | None = None) -> str:
    """Return libbita's error message for an engine that it cannot open."""
    cpp_program("answer_tool")
    command = tool_command(engine, options)
    result = subprocess.run(command, input="", capture_output=True, text=True, timeout=60)
    assert result.returncode == 1, result
    message: str = json.loads(result.stdout)["error"]
    return message
