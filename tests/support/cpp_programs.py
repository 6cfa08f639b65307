"""Programs that are built with libbita for tests, in build/cpp."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from paths import ROOT

BUILD = ROOT / "build" / "cpp"


def cpp_program(name: str) -> Path:
    """A program's file; the test is skipped where it was not built (`make cpp-programs`)."""
    path = BUILD / name
    if not path.is_file():
        pytest.skip(f"{path} is not built: make cpp-programs")
    return path


def onnxruntime_library() -> Path:
    """The library of ONNX Runtime in the Python package."""
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    return next(iter(sorted(folder.glob("libonnxruntime.so*"))))


class AnswerTool:
    """`answer_tool`: answers requests through the C interface of libbita, in a process of its own.

    options: of the engine, by the names of bita_engine_options. program: how to run another one,
    such as an emulator's command.
    """

    def __init__(
        self,
        engine: Path,
        options: Mapping[str, Any] | None = None,
        program: Sequence[str] | None = None,
    ) -> None:
        command = program or [str(cpp_program("answer_tool")), str(onnxruntime_library())]
        self._process = subprocess.Popen(
            [*command, str(engine), json.dumps({"num_threads": 1, **(options or {})})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "AnswerTool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(60) == 0 or kind is not None

    def ask(self, **request: Any) -> dict[str, Any]:
        """The reply to a request, as answer_tool.cpp describes both."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        return reply

    def answer(self, **request: Any) -> Mapping[str, Any]:
        """The reply to a request, which has to be an answer."""
        reply = self.ask(**request)
        assert "error" not in reply, reply
        return reply


def open_fault(engine: Path, options: Mapping[str, Any] | None = None) -> str:
    """What libbita says of an engine that it cannot open."""
    command = [str(cpp_program("answer_tool")), str(onnxruntime_library()), str(engine)]
    command.append(json.dumps(options or {}))
    result = subprocess.run(command, input="", capture_output=True, text=True, timeout=60)
    assert result.returncode == 1, result
    message: str = json.loads(result.stdout)["error"]
    return message
