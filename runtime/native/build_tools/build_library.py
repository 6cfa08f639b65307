"""Build the library of native operators with cmake and ninja, and install it into a folder.

    python build_library.py [--into FOLDER] [--optional]

The build folder is build/native of the repository, so that only changed files are compiled again;
the library is put in place last, by a rename. If a compiler, cmake or headers are missing, a
library in FOLDER that is newer than all sources is kept. Otherwise a failed build leaves no library
there, and one line on stderr gives the cause, the consequence and the fix; the log that it names
has the details. The exit status is then 1, or 0 with --optional.

The compiler is $CXX, otherwise c++, g++ or clang++, otherwise the package ziglang if installed.
Needs only the standard library.
"""

import argparse
import filecmp
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1]
BUILD = SOURCES.parents[1] / "build" / "native"
COMPILERS = ("c++", "g++", "clang++", *(["cl"] if os.name == "nt" else []))
VARIABLES = (
    "CXXFLAGS",
    "LDFLAGS",
    "CMAKE_BUILD_TYPE",
)  # cmake reads them once for each build folder
MIN_CMAKE = (3, 22)
COST = "decoding takes 2 to 3.3 times as long with ONNX Runtime's own operators"
FIXES = {
    "compiler": "install a C++ compiler (Debian: apt-get install g++; or pip install ziglang)",
    "tools": "pip install cmake ninja",
    "headers": "install libonnxruntime-dev, or set ONNXRUNTIME_INCLUDE_DIR to the headers' folder",
    "faults": "see the log",
}


class BuildError(Exception):
    """Raised if a build fails; the message is a clause, and the kind selects an entry of FIXES."""

    def __init__(self, kind: str, missing: str, details: str = "") -> None:
        super().__init__(missing)
        self.kind = kind
        self.details = details


def library_name() -> str:
    """Return the name of the library's file on this system."""
    return {
        "Windows": "bita_operators.dll",
        "Darwin": "libbita_operators.dylib",
    }.get(platform.system(), "libbita_operators.so")


def build(target: Path) -> None:
    """Update the library at `target`, and print a line if it has changed."""
    start = time.monotonic()
    compiler = find_compiler()
    if "ziglang" in compiler[0]:
        print(f"bita-edge: {compiler[0]} compiles; the first time takes minutes", file=sys.stderr)
    out = compile_library(BUILD, compiler)
    _try_out(BUILD / library_name())
    _write_log(out)
    if _put(BUILD / library_name(), target):
        print(f"{target}: built in {time.monotonic() - start:.1f} s")


def compile_library(
    folder: Path,
    compiler: Sequence[str],
    more: Sequence[str] = (),
    target: str = "bita_operators",
) -> str:
    """Update the library in a build folder.

    Args:
        folder: The build folder.
        compiler: Command of the C++ compiler.
        more: Additional cmake settings, such as the compiler's target processor.
        target: The cmake target, for another library.

    Returns:
        The output of the tools.

    Raises:
        BuildError: if a tool is missing or fails.
    """
    cmake, ninja = _tools()
    settings = [
        f"-DCMAKE_CXX_COMPILER={';'.join(compiler)}",
        f"-DONNXRUNTIME_INCLUDE_DIR={_headers()}",
        "-DBITA_WERROR=OFF",
        "-DBITA_TESTS=ON",  # not built here; `make lint` reads their commands
        *more,
    ]
    _drop_other_settings(folder, settings)
    places = ["-S", str(SOURCES), "-B", str(folder)]
    tools = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    out = run([cmake, *places, *tools, *settings])
    return out + run([ninja, "-C", str(folder), target])


def missing_tools() -> list[str]:
    """Return the PyPI packages that a build needs; none if there is no compiler."""
    try:
        find_compiler()
    except BuildError:
        return []
    folders = tool_folders()
    tools = [] if shutil.which("ninja", path=folders) else ["ninja"]
    return tools if _cmake(folders) else [*tools, f"cmake>={'.'.join(map(str, MIN_CMAKE))}"]


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler. Raises BuildError if there is none."""
    given = shlex.split(os.environ.get("CXX", ""), posix=os.name == "posix")
    if given:
        if shutil.which(given[0]) is None:
            raise BuildError("compiler", f"CXX is {shlex.join(given)}, which was not found")
        return given
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    command = [found] if found else _zig()
    if command is None:
        raise BuildError("compiler", "there is no C++ compiler")
    return command


def _zig() -> list[str] | None:
    """Return the command of ziglang's compiler, for all processors of this architecture.

    An isolated build does not see the packages of the environment that it is for; -I makes Python
    ignore pip's isolation.
    """
    code = "import ziglang, pathlib; print(pathlib.Path(ziglang.__file__).parent / 'zig')"
    for options in ([], ["-I"]):
        command = [sys.executable, *options, "-c", code]
        result = subprocess.run(command, capture_output=True, text=True, cwd=SOURCES)
        if result.returncode == 0:
            zig = [result.stdout.strip(), "c++"]
            if platform.system() != "Linux":
                return zig
            libc = "gnu" if platform.libc_ver()[0] == "glibc" else "musl"
            return [*zig, "-target", f"{platform.machine()}-linux-{libc}"]
    return None


def _tools() -> tuple[str, str]:
    """Return the paths of cmake and ninja, of the system or from PyPI."""
    folders = tool_folders()
    cmake, ninja = _cmake(folders), shutil.which("ninja", path=folders)
    if cmake is None:
        raise BuildError("tools", f"there is no cmake {'.'.join(map(str, MIN_CMAKE))} or later")
    if ninja is None:
        raise BuildError("tools", "there is no ninja")
    return cmake, ninja


def tool_folders() -> str:
    """Return PATH with the folder of programs that belong to this Python's packages appended."""
    return os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])


def _cmake(folders: str) -> str | None:
    """Return the first cmake in these folders that is new enough."""
    found = (shutil.which("cmake", path=folder) for folder in folders.split(os.pathsep))
    return next((path for path in found if path and _version(path) >= MIN_CMAKE), None)


def _version(cmake: str) -> tuple[int, ...]:
    result = subprocess.run([cmake, "--version"], capture_output=True, text=True)
    found = re.search(r"version (\d+)\.(\d+)", result.stdout)
    return (int(found[1]), int(found[2])) if found else ()


def _headers() -> str:
    command = [sys.executable, str(Path(__file__).with_name("headers.py"))]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise BuildError("headers", "there are no headers of ONNX Runtime", result.stderr)
    return result.stdout.strip()


def _drop_other_settings(folder: Path, settings: Sequence[str]) -> None:
    """Remove the build folder if it was created with other settings or from other sources."""
    mark = folder / "settings.txt"
    variables = [f"{name}={os.environ.get(name, '')}" for name in VARIABLES]
    text = "\n".join([str(SOURCES), *settings, *variables])
    if not mark.is_file() or mark.read_text(encoding="utf-8") != text:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(text, encoding="utf-8")


def run(command: Sequence[str]) -> str:
    """Run a command and return its output. Raises BuildError if it fails."""
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    out = f"$ {shlex.join(command)}\n{result.stdout.decode(errors='replace')}"
    if result.returncode != 0:
        raise BuildError("faults", f"{Path(command[0]).name} failed", out)
    return out


def _try_out(library: Path) -> None:
    """Load the library in a separate process, which a badly linked library may crash."""
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).bita_operators_version()"
    try:
        run([sys.executable, "-c", code, str(library)])
    except BuildError as error:
        raise BuildError("faults", "the library that was built fails", error.details) from error


def _put(library: Path, target: Path) -> bool:
    """Install the library by a rename, so that processes keep the old one that they have loaded.

    Returns whether the file changed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file() and filecmp.cmp(library, target, shallow=False):
        target.touch()
        return False
    with tempfile.TemporaryDirectory(dir=target.parent) as partial:
        copy = Path(shutil.copy(library, partial))
        copy.replace(target)
    return True


def _is_newer_than_sources(target: Path) -> bool:
    if not target.is_file():
        return False
    kinds = ("*.cpp", "*.h", "*.cmake", "*.map", "CMakeLists.txt")
    files = [path for kind in kinds for path in SOURCES.rglob(kind)]
    return target.stat().st_mtime > max(path.stat().st_mtime for path in files)


def _write_log(text: str) -> Path:
    """Write the log into the cache, since pip removes its build folder, or to a temporary file."""
    base = os.environ.get("XDG_CACHE_HOME")
    cache = Path(base) if base else Path.home() / ".cache"
    log = cache / "bita-edge" / "native-build.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text, encoding="utf-8")
    except OSError:
        file, name = tempfile.mkstemp(prefix="bita-native-build-", suffix=".log", text=True)
        os.close(file)
        log = Path(name)
        log.write_text(text, encoding="utf-8")
    return log


def _give_up(error: BuildError, target: Path) -> bool:
    """Return whether an up-to-date library exists anyway; otherwise report why there is none."""
    if error.kind != "faults" and _is_newer_than_sources(target):
        return True
    target.unlink(missing_ok=True)
    log = _write_log(f"{error}\n{error.details}")
    fix = f"To have them, {FIXES[error.kind]}, then run `make native` or install again"
    print(
        f"bita-edge: no native operators, since {error}: {COST}. {fix}. Log: {log}", file=sys.stderr
    )
    return False


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, default=SOURCES, help="folder of the library")
    parser.add_argument("--optional", action="store_true", help="exit status 0 if it fails")
    parser.add_argument(
        "--missing-tools",
        action="store_true",
        help="only print the packages that a build needs from PyPI",
    )
    options = parser.parse_args(words)
    if options.missing_tools:
        print(*missing_tools())
        return 0
    target = options.into / library_name()
    try:
        try:
            build(target)
        except OSError as error:  # such as a full disk or a read-only folder
            raise BuildError("faults", str(error)) from error
    except BuildError as error:
        is_there = _give_up(error, target)
        if not is_there and not options.optional:
            print(error.details, file=sys.stderr)
        return 0 if is_there or options.optional else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
