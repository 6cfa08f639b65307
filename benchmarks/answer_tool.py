"""Get answers of libbita from `answer_tool`, a program of its tests (make cpp-programs)."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

ThisTool = TypeVar("ThisTool", bound="AnswerTool")

ROOT = Path(__file__).resolve().parents[1]
# BITA_CPP_BUILD names another build in build/, such as cpp-address with sanitizers.
BUILD = ROOT / "build" / os.environ.get("BITA_CPP_BUILD", "cpp")


def onnxruntime_library() -> Path:
    """Return the path of ONNX Runtime's library in its Python package."""
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    return min(folder.glob("libonnxruntime.so*"))


def tool_command(
    engine: Path,
    options: Mapping[str, Any] | None = None,
    program: Sequence[str] | None = None,
    library: Path | None = None,
) -> list[str]:
    """Return the command of the program for an engine.

    Args:
        engine: Directory of the engine.
        options: Options of the engine, named as in bita_engine_options.
        program: Command of another program, such as an emulator's. None runs that of BUILD.
        library: Library of ONNX Runtime. None takes that of the Python package.
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
        """Send a request and return the reply."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        return reply

    def answer(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the reply, which must not be an error."""
        reply = self.ask(**request)
        assert "error" not in reply, reply
        return reply
