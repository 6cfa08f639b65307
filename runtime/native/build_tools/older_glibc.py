"""Build the libraries of a wheel for systems with glibc 2.28 or later.

They are the native operators and libbita. g++ compiles them, as for this system, because its code
is faster than that of zig's clang. zig links them, because it knows the symbols of each version of
glibc; a library that g++ links requires the glibc with which it was built. The C++ library comes
from g++, and the exception unwinder from zig, since g++'s own requires glibc 2.35.
"""

import json
import platform
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import build_library
import packages
from build_library import BuildError
from headers import HeadersError

GLIBC = "2.28"  # from 2018; the newest ONNX Runtime requires it too
MACHINES = {"x86_64": 62, "aarch64": 183}  # numbers in ELF files: EM_X86_64, EM_AARCH64
TOOLS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Library:
    """A library of a wheel."""

    name: str  # of its file, and its soname
    target: str  # cmake target
    objects: tuple[str, ...]  # cmake targets whose objects are linked
    exports: str  # the linker's version script


OPERATORS = Library(
    "libbita_operators.so", "bita_operators", ("bita_operator_objects",), "exports.map"
)
LIBBITA = Library(
    "libbita.so.0", "bita", (*OPERATORS.objects, "bita_runtime", "bita"), "library_exports.map"
)
LIBRARIES = (OPERATORS, LIBBITA)


def build(processor: str, library: Library, target: Path) -> None:
    """Build a library for any processor of MACHINES.

    Args:
        processor: A key of MACHINES; it may differ from this machine's.
        library: The library to build.
        target: The file to write.

    Raises:
        BuildError: if a tool or a package is missing, or fails.
    """
    compiler = find_compiler(processor)
    folder = build_folder(processor, library)
    settings = []
    if processor != platform.machine():
        settings = ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={processor}"]
    archives = []
    if library is LIBBITA:
        prefix = find_packages(processor)
        settings += ["-DBITA_LIBRARY=ON", f"-DBITA_PACKAGES={prefix}"]
        archives = packages.static_libraries(prefix, packages.ARCHITECTURES[processor])
    build_library.compile_library(folder, compiler, settings, library.target)
    inputs = [*_objects(folder, library), *map(str, archives)]
    _link(processor, compiler, library, inputs, target)
    check_machine(target.read_bytes(), processor)


def build_folder(processor: str, library: Library) -> Path:
    """Return the folder of the object files.

    This processor's operators use that of `make native`, which needs none of libbita's packages.
    For other processors both libraries share a folder.
    """
    folder = build_library.BUILD
    if processor != platform.machine():
        return folder.with_name(f"native-{processor}")
    return folder.with_name(f"libbita-{processor}") if library is LIBBITA else folder


def find_compiler(processor: str) -> list[str]:
    """Return the command of a g++ for this processor. Raises BuildError if there is none."""
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


def find_packages(processor: str) -> Path:
    """Return the prefix of libbita's dependencies. Raises BuildError if they are missing."""
    try:
        return packages.find_packages(packages.ARCHITECTURES[processor])
    except HeadersError as error:
        names = " ".join(packages.PACKAGES)
        raise BuildError("headers", f"there are no {names} for {processor}: {error}") from error


def check_machine(library: bytes, processor: str) -> None:
    """Raise BuildError unless these bytes are an ELF file for this processor."""
    machine = int.from_bytes(library[18:20], "little")
    if library[:4] != b"\x7fELF" or machine != MACHINES[processor]:
        raise BuildError("faults", f"the library is not for {processor} (ELF machine {machine})")


def _link(
    processor: str, compiler: list[str], library: Library, inputs: list[str], target: Path
) -> None:
    shim = target.with_name("older_glibc.o")
    source = str(TOOLS / "older_glibc.cpp")
    build_library.run([*compiler, "-O2", "-fPIC", "-c", source, "-o", str(shim)])
    # libgcc.a comes before zig's own runtime, which has a slower memcpy and another exp
    archives = [
        _file_of(compiler, "-print-file-name=libstdc++.a"),
        _file_of(compiler, "-print-libgcc-file-name"),
    ]
    rules = [f"--version-script={TOOLS / library.exports}", f"-soname={library.name}"]
    rules += ["--gc-sections", "--no-undefined"]
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", f"{processor}-linux-gnu.{GLIBC}"]
    inputs = [*inputs, str(shim), *archives, "-lm", "-lunwind"]
    options = ["-O3", "-shared", "-nostdlib++", *[f"-Wl,{rule}" for rule in rules]]
    build_library.run([*zig, *options, *inputs, "-o", str(target)])
    shim.unlink()


def _objects(folder: Path, library: Library) -> list[str]:
    """Return the object files of a library, without leftovers of removed sources."""
    commands = json.loads((folder / "compile_commands.json").read_text(encoding="utf-8"))
    words = (shlex.split(command["command"]) for command in commands)
    outputs = {command[command.index("-o") + 1] for command in words}
    folders = tuple(f"/{name}.dir/" for name in library.objects)
    return sorted(str(folder / path) for path in outputs if any(each in path for each in folders))


def _file_of(compiler: list[str], question: str) -> str:
    """Return the path that the compiler prints, which is a bare name if there is no such file."""
    lines = build_library.run([*compiler, question]).splitlines()
    return lines[-1]
