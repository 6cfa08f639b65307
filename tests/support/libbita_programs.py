"""Programs of tests that are built with libbita as an application is: by its header and its file."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cpp_programs import BUILD, onnxruntime_library
from native_engines import FEATURES, native_engine, require_library

STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")
CAPACITY = 720

needs_c = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
needs_libbita = pytest.mark.skipif(
    not (BUILD / "libbita.so.0").exists(), reason="needs `make cpp-programs`"
)


def tiny_engine(folder: Path) -> Path:
    """A tiny Llama with native operators, int4, drafts, and a chat template in pieces."""
    require_library()
    return native_engine(FEATURES["long"], folder, "int4", CAPACITY).path


def compile_c(source: Path, program: Path, include: Path, with_library: bool = False) -> Path:
    """The program of a source in C99, with the headers of a folder."""
    command = ["gcc", "-std=c99", *STRICT, "-I", str(include), str(source), "-o", str(program)]
    link = [str(BUILD / "libbita.so.0"), f"-Wl,-rpath,{BUILD}"] if with_library else []
    run([*command, *link])
    return program


def run(command: list[str], **more: str) -> str:
    """What a command prints, with these variables too; the test fails if it does."""
    result = subprocess.run(
        command, env={**os.environ, **more}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def loader_folder(folder: Path) -> Path:
    """A folder for LD_LIBRARY_PATH, with the package's ONNX Runtime by its soname."""
    folder.mkdir(exist_ok=True)
    (folder / "libonnxruntime.so.1").symlink_to(onnxruntime_library())
    return folder


def printed(program: Path, *words: str) -> str:
    """What a program prints that finds ONNX Runtime by its soname."""
    folder = program.with_name(f"{program.name} libraries")
    if not folder.is_dir():
        loader_folder(folder)
    return run([str(program), *words], LD_LIBRARY_PATH=str(folder))
