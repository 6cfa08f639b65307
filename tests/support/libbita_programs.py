"""Test programs that use libbita as an application does, through its header and library."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from answer_tool import BUILD, onnxruntime_library
from native_engines import FEATURES, native_engine, require_library

STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")
CAPACITY = 720

needs_c = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
needs_libbita = pytest.mark.skipif(
    not (BUILD / "libbita.so.0").exists(), reason="needs `make cpp-programs`"
)


def tiny_engine(folder: Path) -> Path:
    """Build a tiny int4 Llama with native operators, drafts, and a chat template in pieces."""
    require_library()
    return native_engine(FEATURES["long"], folder, "int4", CAPACITY).path


def compile_c(source: Path, program: Path, include: Path, with_library: bool = False) -> Path:
    """Compile a C99 source with the headers of a folder; return the program."""
    command = ["gcc", "-std=c99", *STRICT, "-I", str(include), str(source), "-o", str(program)]
    link = [str(BUILD / "libbita.so.0"), f"-Wl,-rpath,{BUILD}"] if with_library else []
    run([*command, *link])
    return program


def run(command: Sequence[str], given: str = "", folder: Path | None = None, **more: str) -> str:
    """Run a command with this input, folder and environment; return its output.

    The test fails if the command fails. Carriage returns are kept.
    """
    result = subprocess.run(
        command,
        input=given.encode(),
        cwd=folder,
        env={**os.environ, **more},
        capture_output=True,
        timeout=300,
    )
    assert result.returncode == 0, (result.stdout + result.stderr).decode(errors="replace")
    return result.stdout.decode()


def loader_folder(folder: Path) -> Path:
    """Create a folder for LD_LIBRARY_PATH with the package's ONNX Runtime under its soname."""
    folder.mkdir(exist_ok=True)
    (folder / "libonnxruntime.so.1").symlink_to(onnxruntime_library())
    return folder


def printed(program: Path, *words: str, given: str = "", libraries: str = "") -> str:
    """Run a program that finds ONNX Runtime by its soname; return its output.

    `given` is its input, and `libraries` are further folders for the loader.
    """
    folder = program.with_name(f"{program.name} libraries")
    if not folder.is_dir():
        loader_folder(folder)
    folders = os.pathsep.join([str(folder), *([libraries] if libraries else [])])
    return run([str(program), *words], given, LD_LIBRARY_PATH=folders)


def answer_of_generate(out: str) -> str:
    """Return the answer in the output of examples/c/generate.c."""
    found = re.fullmatch(r"(.*)\n\d+ tokens/s, [\d.]+ tokens a step\n", out, flags=re.DOTALL)
    assert found, out
    return found[1]


def answers_of_chat(out: str) -> list[str]:
    """Return the answers in the output of examples/cpp/chat.cpp."""
    figures = r"\n\[[\d.e+]+ tokens/s, [\d.]+ tokens a step\]\n"
    assert out.endswith("> \n"), out
    return [part.removeprefix("> ") for part in re.split(figures, out)[:-1]]
