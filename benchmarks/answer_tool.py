"""Answers of libbita, by `answer_tool`: a program that its tests have too (make cpp-programs)."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

ThisTool = TypeVar("ThisTool", bound="AnswerTool")

ROOT = Path(__file__).resolve().parents[1]
# Another build, such as cpp-address with sanitizers, by its name in build/.
BUILD = ROOT / "build" / os.environ.get("BITA_CPP_BUILD", "cpp")


def onnxruntime_library() -> Path:
    """The library of ONNX Runtime in the Python package."""
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    return min(folder.glob("libonnxruntime.so*"))


def tool_command(
    engine: Path,
    options: Mapping[str, Any] | None = None,
    program: Sequence[str] | None = None,
    library: Path | None = None,
) -> list[str]:
    """The command of the program for an engine.

    options: of the engine, by the names of bita_engine_options. program: how to run another one,
    such as an emulator's command. library: of ONNX Runtime, for that.
    """
    command = [*(program or [str(BUILD / "answer_tool")]), str(library or onnxruntime_library())]
    return [*command, str(engine), json.dumps(options or {})]


class AnswerTool:
    """A process that answers requests through the C interface, as answer_tool.cpp describes."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self: ThisTool) -> ThisTool:
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
        """The reply to a request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        return reply

    def answer(self, **request: Any) -> dict[str, Any]:
        """The reply to a request, which has to be an answer."""
        reply = self.ask(**request)
        assert "error" not in reply, reply
        return reply
