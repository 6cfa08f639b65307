"""Build wheels with the native operators and libbita, for Linux on x86_64 and aarch64.

    python build_wheels.py [--processor x86_64] [--into dist]

A wheel runs with any Python 3 and with glibc 2.28 or later; auditwheel checks that and names the
file. A wheel always contains both libraries for its processor: nothing is taken from an earlier
build of the package, and the wheel is put in place last. libbita comes with its headers, its cmake
package, and the licenses of the libraries that are linked in. $CXX may name the g++ for this
processor; CXXFLAGS, LDFLAGS and CMAKE_BUILD_TYPE are ignored. Needs wheel_requirements.txt.
"""

import argparse
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import build_library
import older_glibc
from build_library import BuildError

ROOT = build_library.SOURCES.parents[1]
REQUIREMENTS = Path(__file__).with_name("wheel_requirements.txt")
FOLDERS = ("adapters", "bita", "calibration", "export", "runtime")  # the sources of a wheel
FILES = ("LICENSE", "README.md", "pyproject.toml", "setup.py")
PACKAGES = {"auditwheel": "auditwheel", "build": "build", "ziglang": "ziglang"}  # by module
PLACE = "bita/runtime/native"
LIBRARIES = sorted(f"{PLACE}/{library.name}" for library in older_glibc.LIBRARIES)
DEVELOPMENT_FILES = {  # files for programs built with libbita, and the sources of each
    "include/bita/bita.h": build_library.SOURCES / "include" / "bita" / "bita.h",
    "include/bita/bita.hpp": build_library.SOURCES / "include" / "bita" / "bita.hpp",
    "cmake/bitaConfig.cmake": older_glibc.TOOLS / "wheelConfig.cmake",
    "third_party_licenses.txt": older_glibc.TOOLS / "third_party_licenses.txt",
}
VERSION_FILE = "cmake/bitaConfigVersion.cmake"
ADAPTER = "bita/adapters/smollm2-135m-instruct.safetensors"
FROM_GLIBC = {"exp", "expf", "memcpy"}  # for the system's speed, and the same bits


def build_wheel(processor: str, into: Path) -> Path:
    """Build the wheel for a processor into this folder, and return its path.

    Raises:
        BuildError: if a build step or a check fails.
    """
    into.mkdir(parents=True, exist_ok=True)
    build_library.BUILD.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=build_library.BUILD.parent) as name:
        work = Path(name)
        native = work / "native"
        write_native(processor, native)
        wheel = _audit(_pack(processor, native, work / "packed"), work / "audited")
        check_wheel(wheel, processor)
        return _put(wheel, into)


def write_native(processor: str, folder: Path) -> None:
    """Build the package's folder of native code, except for its Python files."""
    folder.mkdir()
    for library in older_glibc.LIBRARIES:
        older_glibc.build(processor, library, folder / library.name)
        check_imports(folder / library.name)
    built = older_glibc.build_folder(processor, older_glibc.LIBBITA)
    for name, source in {
        **DEVELOPMENT_FILES,
        VERSION_FILE: built / Path(VERSION_FILE).name,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)


def check_imports(library: Path) -> None:
    """Raise BuildError unless the library imports glibc's functions instead of linking zig's."""
    from elftools.elf.elffile import ELFFile  # comes with auditwheel

    with library.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym").iter_symbols()
        imported = {symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF"}
    if not imported >= FROM_GLIBC:
        lacking = ", ".join(sorted(FROM_GLIBC - imported))
        raise BuildError("faults", f"zig linked its own {lacking} into {library.name}")


def check_wheel(wheel: Path, processor: str) -> None:
    """Raise a BuildError that lists every fault of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        development = [f"{PLACE}/{name}" for name in (*DEVELOPMENT_FILES, VERSION_FILE)]
        wanted = [*LIBRARIES, *development, ADAPTER]
        faults = [f"it lacks {name}" for name in wanted if name not in names]
        found = {name for name in names if ".so" in name or name.endswith(".o")}
        if not found <= {*LIBRARIES}:
            faults.append(f"it has the libraries {', '.join(sorted(found))}")
        for name in sorted(found & {*LIBRARIES}):
            try:
                older_glibc.check_machine(archive.read(name), processor)
            except BuildError as error:
                faults.append(f"{name}: {error}")
    faults += _faults_of_name(wheel.name, processor)
    if faults:
        raise BuildError("faults", f"{wheel.name} is not valid: {'; '.join(faults)}")


def _faults_of_name(name: str, processor: str) -> list[str]:
    found = re.search(rf"-py3-none-manylinux_(\d+)_(\d+)_{processor}\.whl$", name)
    if found is None:
        return [f"its name does not end with py3-none-manylinux_X_Y_{processor}"]
    newest = tuple(map(int, older_glibc.GLIBC.split(".")))
    is_too_new = (int(found[1]), int(found[2])) > newest
    return [f"it requires a glibc later than {older_glibc.GLIBC}"] if is_too_new else []


def _pack(processor: str, native: Path, folder: Path) -> Path:
    """Build a wheel with this native code from a clean copy of the sources."""
    source = folder / "source"
    source.mkdir(parents=True)
    leave_out = shutil.ignore_patterns("__pycache__", "*bita_operators.*")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=leave_out)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    options = [f"--native={native}", f"--plat-name=linux_{processor}"]
    settings = [f"--config-setting=--build-option={option}" for option in options]
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", *settings]
    build_library.run([*command, "--outdir", str(folder), str(source)])
    return next(folder.glob("*.whl"))


def _audit(wheel: Path, folder: Path) -> Path:
    """Tag a wheel with the oldest glibc with which it runs, as determined by auditwheel.

    auditwheel reads the processor from the library; it only knows the local one by name.
    """
    command = [sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", "--only-plat"]
    build_library.run([*command, "--wheel-dir", str(folder), str(wheel)])
    return next(folder.glob("*.whl"))


def _put(wheel: Path, into: Path) -> Path:
    """Put the wheel in place by a rename, after a copy that may cross file systems."""
    with tempfile.TemporaryDirectory(prefix=".", dir=into) as partial:
        copy = Path(partial) / wheel.name
        copy.write_bytes(wheel.read_bytes())
        return copy.replace(into / wheel.name)


def _check_tools(processors: Sequence[str]) -> None:
    """Raise BuildError if a package or a compiler is missing, before anything is built."""
    missing = [name for module, name in PACKAGES.items() if not importlib.util.find_spec(module)]
    if missing:
        raise BuildError(
            "tools",
            f"there is no {' and no '.join(missing)} here; pip install -r {REQUIREMENTS}, "
            "or run `make wheels` with a network",
        )
    for processor in processors:
        older_glibc.find_compiler(processor)
        older_glibc.find_packages(processor)


def _main(processors: Sequence[str], into: Path) -> None:
    if platform.system() != "Linux":
        raise BuildError("faults", f"wheels are for Linux, and this is {platform.system()}")
    for name in build_library.VARIABLES:
        os.environ.pop(name, None)  # -march=native, for example, would be wrong on other machines
    os.environ["PATH"] = build_library.tool_folders()  # auditwheel looks for patchelf there
    _check_tools(processors)
    for processor in processors:
        wheel = build_wheel(processor, into)
        print(f"{wheel}: {wheel.stat().st_size / 1e6:.2f} MB")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--processor",
        choices=tuple(older_glibc.MACHINES),
        help="build one wheel only; otherwise there is one for each",
    )
    parser.add_argument("--into", type=Path, default=ROOT / "dist", help="folder of the wheels")
    options = parser.parse_args(words)
    processors = [options.processor] if options.processor else list(older_glibc.MACHINES)
    try:
        _main(processors, options.into.absolute())
    except (BuildError, OSError) as error:
        print(getattr(error, "details", ""), file=sys.stderr, end="")
        print(f"bita-edge: no wheel, since {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
