"""Commands with unusual input or output: other encodings, closed pipes, invalid bytes."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from speed import slow_but

BITA = [sys.executable, "-m", "bita"]
UNUSUAL = "café \U0001f600"
# The C locale, with Python's fallbacks to UTF-8 turned off.
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def run_bita(
    *args: object, stdin: bytes = b"", environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[bytes]":
    words = [arg if isinstance(arg, bytes) else str(arg) for arg in args]
    env = {**os.environ, **(environment or {})}
    return subprocess.run([*BITA, *words], input=stdin, capture_output=True, env=env, timeout=120)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PYTHONIOENCODING": "ascii"}, rb"caf\xe9 \U0001f600"),
        ({"PYTHONIOENCODING": "latin-1"}, b"caf\xe9 \\U0001f600"),
        ({"PYTHONIOENCODING": "cp1252"}, b"caf\xe9 \\U0001f600"),
        ({"PYTHONIOENCODING": "utf-8"}, UNUSUAL.encode()),
        (ASCII_LOCALE, rb"caf\xe9 \U0001f600"),
    ],
    ids=["ascii", "latin-1", "cp1252", "utf-8", "locale C"],
)
def test_characters_that_the_output_encoding_lacks_are_escaped(
    tiny_engine: Path, environment: Mapping[str, str], expected: bytes
) -> None:
    result = run_bita("generate", tiny_engine, "hi", "--regex", UNUSUAL, environment=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, expected + b"\n", b"")


@pytest.mark.parametrize(
    "environment", slow_but([{"PYTHONIOENCODING": "ascii"}, ASCII_LOCALE], ASCII_LOCALE)
)
def test_tables_and_errors_can_be_ascii(tiny_engine: Path, environment: Mapping[str, str]) -> None:
    result = run_bita("inspect", tiny_engine, environment=environment)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.isascii()
    assert b"\\u25" not in result.stdout  # no escaped box-drawing characters
    result = run_bita("inspect", "nö-model", environment=environment)
    assert (result.returncode, result.stderr.count(b"\n")) == (2, 1)
    assert result.stderr.isascii()
    assert b"Traceback" not in result.stderr


def test_arguments_are_utf_8_in_any_locale(tiny_engine: Path) -> None:
    arguments = ("generate", tiny_engine, UNUSUAL.encode(), "--max-new-tokens", 5, "--raw")
    usual = run_bita(*arguments)
    assert usual.returncode == 0
    found = run_bita(*arguments, environment={**ASCII_LOCALE, "PYTHONIOENCODING": "utf-8"})
    assert found.stdout == usual.stdout
    piped = run_bita(*("generate", tiny_engine, "-", *arguments[3:]), stdin=UNUSUAL.encode())
    assert piped.stdout == usual.stdout


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        ((b"\xff",), b"", b"argument prompt: '\\udcff' is not UTF-8"),
        (("hi", "--system", b"\xff"), b"", b"argument --system: '\\udcff' is not UTF-8"),
        (("hi", "--stop", b"a\xff"), b"", b"argument --stop: 'a\\udcff' is not UTF-8"),
        (("hi", "--regex", b"\xff"), b"", b"argument --regex: '\\udcff' is not UTF-8"),
        (("-",), b"caf\xe9", b"standard input is not UTF-8"),
        (("hi", "--tree", b"\xff"), b"", b"no tree '\\udcff'"),
        (("hi", "--json-schema", b"\xff"), b"", b"cannot read \\udcff"),
    ],
)
def test_bytes_that_are_not_utf_8_are_refused(
    tiny_engine: Path, args: tuple[str | bytes, ...], stdin: bytes, message: bytes
) -> None:
    result = run_bita("generate", tiny_engine, *args, stdin=stdin)
    assert (result.returncode, result.stdout) == (2, b"")
    assert message in result.stderr
    assert b"Traceback" not in result.stderr


def test_a_chat_continues_after_a_line_that_is_not_utf_8(tiny_engine: Path) -> None:
    result = run_bita("chat", tiny_engine, "--max-new-tokens", 4, stdin=b"caf\xe9\ncaf\xc3\xa9\n")
    assert result.returncode == 0
    assert result.stderr.startswith(b"bita: that is not UTF-8")
    assert b"[length]" in result.stdout


@pytest.mark.parametrize(
    "args",
    [("generate", "ENGINE", "hi", "--max-new-tokens", 300), ("--help",), ("serve", "--help")],
    ids=["generate", "--help", "serve --help"],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_output_pipe_ends_a_command_quietly(
    tiny_engine: Path, args: tuple[object, ...], unbuffered: str
) -> None:
    words = [str(tiny_engine) if arg == "ENGINE" else str(arg) for arg in args]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen(
        [*BITA, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("args", [("generate", "ENGINE", "hi"), ("inspect", "ENGINE")])
def test_a_full_disk_is_reported(tiny_engine: Path, args: tuple[str, ...]) -> None:
    words = [str(tiny_engine) if arg == "ENGINE" else arg for arg in args]
    with open("/dev/full", "wb") as full:
        result = subprocess.run([*BITA, *words], stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert result.returncode == 2
    assert result.stderr.startswith(b"bita: error: [Errno 28] No space left on device")
    assert result.stderr.count(b"\n") == 1


def test_closed_standard_streams_are_not_an_error(tiny_engine: Path) -> None:
    command = f"{sys.executable} -m bita inspect {tiny_engine}"
    for closed in (">&-", "2>&-", "<&-"):
        result = subprocess.run(["bash", "-c", f"{command} {closed}"], capture_output=True)
        assert (result.returncode, result.stderr) == (0, b""), closed


def test_an_interrupt_is_reported_on_one_line(tiny_engine: Path) -> None:
    process = subprocess.Popen(
        [*BITA, "generate", str(tiny_engine), "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdin is not None
    process.stdin.write(b"a" * (1 << 20))  # more than a pipe holds: the command has begun to read
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, b"", b"bita: interrupted\n")
