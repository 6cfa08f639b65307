"""libbita as applications use it: installed and found, with headers in strict C and C++."""

import re
import shutil
from pathlib import Path

import pytest
from answer_tool import BUILD
from libbita_programs import (
    STRICT,
    answer_of_generate,
    answers_of_chat,
    needs_c,
    needs_libbita,
    printed,
    run,
    tiny_engine,
)
from paths import ROOT

from bita.runtime.session import Session

INCLUDE = ROOT / "runtime" / "native" / "include"
HEADER = INCLUDE / "bita" / "bita.h"
TOOLS = ROOT / "runtime" / "native" / "build_tools"
EXAMPLES = ROOT / "examples"
PROMPT = "The tree asks"

needs_cmake = pytest.mark.skipif(
    not all(map(shutil.which, ("g++", "cmake", "ninja"))), reason="needs g++, cmake and ninja"
)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `cmake --install` writes to."""
    folder = tmp_path_factory.mktemp("prefix") / "usr local"
    run(["cmake", "--install", str(BUILD), "--prefix", str(folder)])
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_engine(tmp_path_factory.mktemp("native"))


def library_folder(prefix: Path) -> Path:
    (library,) = prefix.glob("lib*/**/libbita.so.0")
    return library.parent


@pytest.mark.slow
@needs_libbita
@needs_cmake
def test_a_program_built_with_cmake_answers(prefix: Path, engine: Path, tmp_path: Path) -> None:
    flags = f"-DCMAKE_CXX_FLAGS={' '.join(STRICT)}"
    place = ["-S", str(EXAMPLES / "cpp"), "-B", str(tmp_path), "-G", "Ninja"]
    run(["cmake", *place, f"-DCMAKE_PREFIX_PATH={prefix}", flags])
    run(["cmake", "--build", str(tmp_path)])
    questions = ["What is a tree?", "And a mask?"]
    out = printed(tmp_path / "chat", str(engine), given="\n".join(["", *questions, ""]))
    conversation = Session.open(engine, num_threads=1).conversation()
    wanted = [conversation.send(each, max_new_tokens=256).run().text for each in questions]
    assert answers_of_chat(out.removeprefix("> ")) == wanted
    assert (prefix / "share" / "doc" / "bita" / "third_party_licenses.txt").is_file()


@pytest.mark.slow
@needs_libbita
@needs_cmake
@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="needs pkg-config")
def test_a_program_built_with_pkg_config_answers(
    prefix: Path, engine: Path, tmp_path: Path
) -> None:
    folder = library_folder(prefix)
    words = "$(pkg-config --cflags --libs bita)"
    source = EXAMPLES / "c" / "generate.c"
    line = f"gcc -std=c99 {' '.join(STRICT)} '{source}' -o '{tmp_path}/generate'"
    run(["bash", "-c", f"eval {line} {words}"], PKG_CONFIG_PATH=str(folder / "pkgconfig"))
    out = printed(tmp_path / "generate", str(engine), PROMPT, libraries=str(folder))
    wanted = Session.open(engine, num_threads=1).generate(PROMPT, max_new_tokens=256).text
    assert answer_of_generate(out) == wanted
    version = run(["pkg-config", "--modversion", "bita"], PKG_CONFIG_PATH=f"{folder}/pkgconfig")
    assert version == "0.2.0\n"


def use_header() -> str:
    """Write a C and C++ file that includes the header and uses every initializer macro."""
    macros = re.findall(r"#define (BITA_\w+)_INIT", HEADER.read_text(encoding="utf-8"))
    assert len(macros) == 5
    names = [macro.lower() for macro in macros]
    made = "".join(f"  {name} a_{name} = {name.upper()}_INIT;\n" for name in names)
    used = " + ".join(f"a_{name}.struct_size" for name in names)
    include = "#include <bita/bita.h>\n"
    return f"{include}{include}int main(void) {{\n{made}  return ({used}) == 0;\n}}\n"


@needs_c
@pytest.mark.parametrize("standard", ["c99", "c11", "c17", "c++98", "c++11", "c++17", "c++20"])
def test_the_c_header_compiles_with_strict_warnings(standard: str, tmp_path: Path) -> None:
    is_cpp = standard.startswith("c++")
    compiler = "g++" if is_cpp else "gcc"
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    source = tmp_path / f"uses.{'cpp' if is_cpp else 'c'}"
    source.write_text(use_header(), encoding="utf-8")
    run([compiler, f"-std={standard}", *STRICT, "-I", str(INCLUDE), "-fsyntax-only", str(source)])


@pytest.mark.parametrize("compiler", ["g++", "clang++-19", "clang++"])
def test_the_cpp_header_compiles_with_strict_warnings(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    source = tmp_path / "uses.cpp"
    source.write_text("#include <bita/bita.hpp>\n#include <bita/bita.hpp>\n", encoding="utf-8")
    for path in (source, EXAMPLES / "cpp" / "chat.cpp"):
        command = [compiler, "-std=c++17", *STRICT, "-Wshadow", "-I", str(INCLUDE)]
        run([*command, "-fsyntax-only", str(path)])


@needs_c
def test_compiler_attributes_are_used_only_where_supported(tmp_path: Path) -> None:
    """Visual C++ does not support `__attribute__`."""
    for name in ("stdbool.h", "stddef.h", "stdint.h"):
        (tmp_path / name).touch()
    command = ["gcc", "-E", "-D_WIN32", "-nostdinc", f"-I{tmp_path}", str(HEADER)]
    for options, word in (([], "dllimport"), (["-DBITA_BUILDS"], "dllexport")):
        out = run([*command, *options])
        assert f"__declspec({word})" in out
        assert "__attribute__" not in out


def exported_functions() -> set[str]:
    text = (TOOLS / "library_exports.map").read_text(encoding="utf-8")
    return set(re.findall(r"^ +(bita_\w+);", text, flags=re.MULTILINE))


def test_the_header_declares_what_the_linker_exports() -> None:
    header = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    declared = re.findall(r"\bBITA_API [^;(]*?(bita_\w+)\(", header)
    assert len(declared) == len({*declared}) == 19
    assert exported_functions() == {*declared}


@needs_libbita
@pytest.mark.skipif(
    not all(map(shutil.which, ("nm", "readelf"))), reason="needs nm and readelf of binutils"
)
def test_the_library_exports_only_its_functions() -> None:
    library = str(BUILD / "libbita.so.0")
    lines = run(["nm", "-D", "--defined-only", "--format=posix", library]).splitlines()
    names = {line.split()[0].split("@")[0] for line in lines}
    assert names == exported_functions() | {"BITA_1"}  # the version name of the symbols
    dynamic = run(["readelf", "-d", library])
    assert "Library soname: [libbita.so.0]" in dynamic
    needed = set(re.findall(r"Shared library: \[(.*?)\]", dynamic))
    assert not [name for name in needed if "onnxruntime" in name or "stdc++" in name], needed


def test_the_soname_is_the_same_everywhere() -> None:
    """CMake's build and the wheels name the library alike."""
    wanted = {
        "library.cmake": "SOVERSION 0 ",
        "older_glibc.py": '"libbita.so.0"',
        "library_abi.py": 'SONAME = "libbita.so.0"',
        "wheelConfig.cmake": "IMPORTED_SONAME libbita.so.0",
    }
    for name, text in wanted.items():
        assert text in (TOOLS / name).read_text(encoding="utf-8"), name
