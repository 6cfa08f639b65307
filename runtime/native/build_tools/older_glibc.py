"""Builds the library of native operators for systems with glibc 2.28 or later.

g++ compiles it, as it does for this system: it makes faster steps than zig's clang. Zig links it,
since zig knows what each version of glibc has; a library that g++ links asks for functions of the
glibc that it was built with. The C++ library comes from g++, and the code that unwinds exceptions
from zig, since g++'s own asks for glibc 2.35.
"""

import json
import platform
import shlex
import shutil
import sys
from pathlib import Path

import build_library
from build_library import BuildError

GLIBC = "2.28"  # of 2018; the newest ONNX Runtime asks for it too
MACHINES = {"x86_64": 62, "aarch64": 183}  # in an ELF file: EM_X86_64, EM_AARCH64
LIBRARY = "libbita_operators.so"
TOOLS = Path(__file__).resolve().parent


def build(processor: str, target: Path) -> None:
    """Write the library for a processor of MACHINES, whatever the processor here."""
    compiler = find_compiler(processor)
    is_cross = processor != platform.machine()
    folder = build_library.BUILD
    settings = []
    if is_cross:
        folder = folder.with_name(f"native-{processor}")
        settings = ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={processor}"]
    build_library.compile_library(folder, compiler, settings)
    _link(processor, compiler, _objects(folder), target)
    check_machine(target.read_bytes(), processor)


def find_compiler(processor: str) -> list[str]:
    """The command of a g++ for this processor. BuildError if there is none."""
    if processor == platform.machine():
        compiler = build_library.find_compiler()
    else:
        found = shutil.which(f"{processor}-linux-gnu-g++")
        if found is None:
            package = f"g++-{processor.replace('_', '-')}-linux-gnu"
            raise BuildError(
                "compiler", f"there is no {processor}-linux-gnu-g++ (Debian: apt install {package})"
            )
        compiler = [found]
    if not Path(_file_of(compiler, "-print-file-name=libstdc++.a")).is_absolute():
        raise BuildError("compiler", f"{compiler[0]} has no libstdc++.a; set CXX to a g++")
    return compiler


def check_machine(library: bytes, processor: str) -> None:
    """BuildError unless these are the bytes of an ELF file for this processor."""
    machine = int.from_bytes(library[18:20], "little")
    if library[:4] != b"\x7fELF" or machine != MACHINES[processor]:
        raise BuildError("faults", f"the library is not for {processor} (ELF machine {machine})")


def _link(processor: str, compiler: list[str], objects: list[str], target: Path) -> None:
    shim = target.with_name("older_glibc.o")
    source = str(TOOLS / "older_glibc.cpp")
    build_library.run([*compiler, "-O2", "-fPIC", "-c", source, "-o", str(shim)])
    # libgcc.a comes before zig's own runtime, which has a slower memcpy and another exp
    archives = [
        _file_of(compiler, "-print-file-name=libstdc++.a"),
        _file_of(compiler, "-print-libgcc-file-name"),
    ]
    exports = TOOLS / "exports.map"
    rules = [f"--version-script={exports}", f"-soname={LIBRARY}", "--gc-sections", "--no-undefined"]
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", f"{processor}-linux-gnu.{GLIBC}"]
    inputs = [*objects, str(shim), *archives, "-lm", "-lunwind"]
    options = ["-O3", "-shared", "-nostdlib++", *[f"-Wl,{rule}" for rule in rules]]
    build_library.run([*zig, *options, *inputs, "-o", str(target)])


def _objects(folder: Path) -> list[str]:
    """Object files of the library; the folder may also hold those of removed sources."""
    commands = json.loads((folder / "compile_commands.json").read_text(encoding="utf-8"))
    words = (shlex.split(command["command"]) for command in commands)
    outputs = {command[command.index("-o") + 1] for command in words}
    return sorted(str(folder / path) for path in outputs if "/bita_operators.dir/" in path)


def _file_of(compiler: list[str], question: str) -> str:
    """The path that the compiler prints; a bare name where it has no such file."""
    lines = build_library.run([*compiler, question]).splitlines()
    return lines[-1]
