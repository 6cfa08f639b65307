"""Trial compilation of a grammar in a child process.

llguidance bounds most of its work, but not all: intersections of patterns can take minutes and
gigabytes, and long chains of rules overflow the stack, which would end this process. So a grammar
that is not known to be simple is first compiled in a child, which the kernel ends at its limits.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from time import monotonic
from typing import Any

from bita.errors import EngineError, PromptError
from bita.runtime.text.grammar_size import LIMITS
from bita.runtime.text.grammar_tokens import CONTROL, GrammarTokens

CHILD = Path(__file__).with_name("grammar_child.py")
MAX_SECONDS = 0.75  # of CPU time; ordinary schemas take 0.01
MAX_BYTES = 128 << 20
MAX_WALL_SECONDS = 20.0  # for a busy machine
_LOOK_SECONDS = 0.05  # between checks whether the grammar is still wanted
# Let glibc take memory from the kernel in large pieces: otherwise that takes longer than the rest.
_MALLOC = {"MALLOC_TOP_PAD_": str(8 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}

_one_at_a_time = Lock()


@dataclass(frozen=True)
class Trial:
    """The outcome of a trial."""

    fault: str | None  # why the grammar is refused; None: it is accepted
    num_bytes: int = 0  # of memory for compiling it


def try_grammar(text: str, tokens: GrammarTokens, is_wanted: Callable[[], bool]) -> Trial:
    """Compile a grammar in a child process, one at a time. Takes at least 0.1 s.

    Args:
        text: The grammar as llguidance's JSON.
        tokens: The tokens of the model.
        is_wanted: Called every 0.05 s; False ends the trial.

    Raises:
        PromptError: If `is_wanted` returned False.
        EngineError: If the child cannot be run.
    """
    while not _one_at_a_time.acquire(timeout=_LOOK_SECONDS):
        _check_wanted(is_wanted)
    try:
        return _run(json.dumps(_make_request(text, tokens)), is_wanted)
    finally:
        _one_at_a_time.release()


def _make_request(text: str, tokens: GrammarTokens) -> Mapping[str, Any]:
    """Return the child's input, with only single-byte tokens and those that grammars can name."""
    used = {
        token: data.hex()
        for token, data in enumerate(tokens.tokens)
        if len(data) == 1 or data.startswith(CONTROL)
    }
    spec = find_spec("llguidance")
    assert spec is not None
    assert spec.origin is not None
    return {
        "packages": str(Path(spec.origin).parent.parent),
        "grammar": text,
        "limits": dict(LIMITS),
        "tokens": used,
        "num_rows": len(tokens.tokens),
        "eos_ids": tokens.eos_ids,
        "seconds": MAX_SECONDS,
        "num_bytes": MAX_BYTES,
    }


def _run(request: str, is_wanted: Callable[[], bool]) -> Trial:
    try:
        child = _start(request)
    except OSError as error:
        raise EngineError(f"cannot try the grammar in another process: {error}") from error
    ends_at = monotonic() + MAX_WALL_SECONDS
    with child:
        try:
            while True:
                try:
                    out, err = child.communicate(timeout=_LOOK_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    _check_wanted(is_wanted)
                    if monotonic() > ends_at:
                        return Trial(f"does not compile within {MAX_WALL_SECONDS:g} s")
        finally:
            child.kill()
    return _judge(child.returncode, out, err)


def _start(request: str) -> "subprocess.Popen[str]":
    command = [sys.executable or "python3", "-I", str(CHILD)]
    with TemporaryFile("w+", encoding="utf-8") as file:  # a pipe would need a writer meanwhile
        file.write(request)
        file.seek(0)
        pipe, env = subprocess.PIPE, {**os.environ, **_MALLOC}
        return subprocess.Popen(command, stdin=file, stdout=pipe, stderr=pipe, text=True, env=env)


def _judge(code: int, out: str, err: str) -> Trial:
    if code == 0:
        return Trial(None, int(out))
    if code == -signal.SIGVTALRM:
        return Trial(f"takes more than {MAX_SECONDS:g} s to compile")
    if code == -signal.SIGSEGV:
        return Trial("is nested too deeply")
    if code < 0:  # Rust's allocator aborts without memory
        return Trial(f"takes more than {MAX_BYTES >> 20} MB to compile")
    raise EngineError(f"cannot try the grammar in another process: {err.strip()[-300:]}")


def _check_wanted(is_wanted: Callable[[], bool]) -> None:
    if not is_wanted():
        raise PromptError("the answer is no longer wanted")
