"""Record libbita's binary interface, or check it, with abigail-tools: `make abi`.

    python library_abi.py [--check] [--build build/cpp] [--file runtime/native/abi/libbita.abi]

--check compares the sources with the file, and fails if a program that was built before would no
longer run. The file describes the functions, and the types that they use, as far as the public
headers show them. The C functions are compiled again with debug information, with the command in
the build folder, and linked alone: the code that they call does not matter here. The file is the
same for every build and for all 64-bit processors. Needs only the standard library.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1]
BUILD = SOURCES.parents[1] / "build" / "cpp"
FILE = SOURCES / "abi" / "libbita.abi"
FUNCTIONS = SOURCES / "api" / "bita.cpp"
SONAME = "libbita.so.0"
OPTIONS = (
    "--headers-dir",
    str(SOURCES / "include"),
    "--drop-private-types",
    "--exported-interfaces-only",
    "--no-corpus-path",
    "--no-comp-dir-path",
    "--no-elf-needed",
    "--no-architecture",
    "--no-show-locs",
    "--no-parameter-names",
    "--type-id-style",
    "hash",
)


class AbiError(Exception):
    """Raised if a tool is missing or fails, or if the interface breaks programs."""


def write_abi(build: Path, out: Path) -> None:
    """Write the current interface of the sources.

    Args:
        build: A build folder with libbita.
        out: The file to write.

    Raises:
        AbiError: if the interface cannot be determined.
    """
    if shutil.which("abidw") is None:
        raise AbiError("there is no abidw; install abigail-tools")
    command = _compile_command(build)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / SONAME
        _run([*command, "-o", str(library)], build)
        dump = Path(folder) / "dump.abi"
        _run(["abidw", *OPTIONS, "--out-file", str(dump), str(library)], build)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dump, out)


def changes(old: Path, new: Path) -> str:
    """Return abidiff's report of changes in `new` that break programs built with `old`, or "".

    New functions are compatible, and so are fields at the end of a struct that begins with its
    size.
    """
    if shutil.which("abidiff") is None:
        raise AbiError("there is no abidiff; install abigail-tools")
    with tempfile.TemporaryDirectory() as folder:
        cut = Path(folder) / "new.abi"
        _cut_added_fields(old, new, cut)
        command = ["abidiff", "--harmless", "--no-added-syms", str(old), str(cut)]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode & 3:  # it did not compare
        raise AbiError(f"abidiff failed:\n{result.stderr}")
    return result.stdout if result.returncode else ""


def _cut_added_fields(old: Path, new: Path, cut: Path) -> None:
    """Write `new` without the fields added at the end of structs that begin with their size.

    A new field in the padding of an old struct is not such an addition: the caller's struct_size
    includes it, although the caller has not set it.
    """
    tree = ElementTree.parse(new)
    structs = {each.get("name"): each for each in ElementTree.parse(old).iter("class-decl")}
    for struct in tree.iter("class-decl"):
        before = structs.get(struct.get("name"))
        size = 0 if before is None else int(before.get("size-in-bits", 0))
        fields = struct.findall("data-member")
        has_size = bool(fields) and fields[0].find("var-decl[@name='struct_size']") is not None
        added = [each for each in fields if int(each.get("layout-offset-in-bits", 0)) >= size]
        if size and has_size and added:
            for field in added:
                struct.remove(field)
            struct.set("size-in-bits", str(size))
    tree.write(cut, encoding="utf-8")


def _check(build: Path, file: Path) -> None:
    """Raise an AbiError that lists the changes that break programs, and the fix."""
    with tempfile.TemporaryDirectory() as folder:
        now = Path(folder) / "now.abi"
        write_abi(build, now)
        found = changes(file, now)
    if found:
        raise AbiError(
            f"programs that were built with an older libbita would not run with this:\n{found}\n"
            "Add functions instead, and fields at the end of structs, beyond their old size. If "
            "the change is necessary, raise the soname (SOVERSION in library.cmake, and where the "
            "tests require it), then run `make abi`"
        )


def _compile_command(build: Path) -> list[str]:
    """Return the command that compiles the C functions to a library with debug information."""
    path = build / "compile_commands.json"
    if not path.is_file():
        raise AbiError(f"there is no {path}; run `make cpp-programs` first")
    entries = json.loads(path.read_text(encoding="utf-8"))
    commands = [shlex.split(each["command"]) for each in entries if each["file"] == str(FUNCTIONS)]
    if not commands:
        raise AbiError(f"{path} has no command for {FUNCTIONS}; run `make cpp-programs`")
    words = commands[0]
    place = words.index("-o")
    kept = [word for word in [*words[:place], *words[place + 2 :]] if word != "-c"]
    exports = SOURCES / "build_tools" / "library_exports.map"
    link = ["-shared", f"-Wl,--version-script={exports}", f"-Wl,-soname={SONAME}"]
    return [*kept, "-g", "-O0", f"-ffile-prefix-map={SOURCES}/=", *link]


def _run(command: Sequence[str], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        raise AbiError(f"{Path(command[0]).name} failed:\n{result.stderr or result.stdout}")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the file")
    parser.add_argument("--build", type=Path, default=BUILD, help="a build folder with libbita")
    parser.add_argument("--file", type=Path, default=FILE, help="the recorded interface")
    options = parser.parse_args(words)
    try:
        work = _check if options.check else write_abi
        work(options.build.absolute(), options.file.absolute())
    except AbiError as error:
        print(f"bita-edge: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
