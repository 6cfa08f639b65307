"""Building the native operators: the files it leaves, and its messages when it fails."""

import ctypes
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from paths import ROOT

NATIVE = ROOT / "runtime" / "native"
SOURCE = """
extern "C" __attribute__((visibility("default"))) int bita_operators_version(void) { return 1; }
extern "C" __attribute__((visibility("default"))) int unrelated(void) { return 2; }
"""
NAME = {"darwin": "libbita_operators.dylib"}.get(sys.platform, "libbita_operators.so")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the compiler needs a set-up environment")
needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("c++", "cmake", "ninja"))), reason="needs c++, cmake and ninja"
)
no_zig = pytest.mark.skipif(find_spec("ziglang") is not None, reason="ziglang compiles too")


class Tree:
    """A source tree with one small source file and a header that only has a version."""

    def __init__(self, root: Path) -> None:
        self.native = root / "runtime" / "native"
        self.source = self.native / "operators" / "library.cpp"
        self.target = root / "out" / NAME
        self.source.parent.mkdir(parents=True)
        shutil.copy(NATIVE / "CMakeLists.txt", self.native)
        shutil.copytree(NATIVE / "build_tools", self.native / "build_tools")
        self.source.write_text(SOURCE, encoding="utf-8")
        self.headers = root / "headers"
        self.headers.mkdir()
        self.write_header(21)
        self.environment = {
            **os.environ,
            "ONNXRUNTIME_INCLUDE_DIR": str(self.headers),
            "XDG_CACHE_HOME": str(root / "cache"),
            "CMAKE_BUILD_TYPE": "None",
            "CXX": "",
        }

    def write_header(self, version: int) -> None:
        header = self.headers / "onnxruntime_c_api.h"
        header.write_text(f"#define ORT_API_VERSION {version}\n", encoding="utf-8")

    def build(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("build_library.py", "--into", str(self.target.parent), *options)

    def run(self, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.native / "build_tools" / script), *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@needs_tools
def test_unchanged_sources_are_not_built_again(tree: Tree) -> None:
    result = tree.build()
    assert result.returncode == 0, result.stderr
    assert f"{tree.target}: built in " in result.stdout
    before = tree.target.stat()
    result = tree.build()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert tree.target.stat().st_ino == before.st_ino
    tree.source.write_text(SOURCE.replace("return 1", "return 5"), encoding="utf-8")
    assert "built in" in tree.build().stdout
    assert ctypes.CDLL(str(tree.target)).bita_operators_version() == 5


@needs_tools
def test_only_operator_functions_are_exported(tree: Tree) -> None:
    assert tree.build().returncode == 0
    library = ctypes.CDLL(str(tree.target))
    assert library.bita_operators_version() == 1
    assert not hasattr(library, "unrelated")


@needs_tools
@pytest.mark.parametrize("fault", ["no C++", 'extern "C" int bita_operators_isa() { return 1; }'])
def test_a_failed_build_leaves_no_library(fault: str, tree: Tree) -> None:
    """The library of earlier sources goes too, as does one that lacks required functions."""
    assert tree.build().returncode == 0
    tree.source.write_text(fault, encoding="utf-8")
    result = tree.build("--optional")
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert "bita-edge: no native operators, since " in line
    assert ": decoding takes 2 to 3.3 times as long" in line
    log = Path(line.rpartition("Log: ")[2])
    assert len(log.read_text(encoding="utf-8").splitlines()) > 3
    assert not tree.target.exists()
    result = tree.build()
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) > 3


@no_zig
def test_a_missing_compiler_is_reported_in_one_line(tree: Tree, tmp_path: Path) -> None:
    """A library newer than the sources stays; an older one is deleted."""
    tree.target.parent.mkdir()
    tree.target.write_bytes(b"a library")
    tree.environment["PATH"] = str(tmp_path)
    assert (tree.build().returncode, tree.build().stderr) == (0, "")
    assert tree.target.exists()
    os.utime(tree.target, (1, 1))
    result = tree.build("--optional")
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert "no native operators, since there is no C++ compiler: decoding takes 2 to 3.3" in line
    assert "install a C++ compiler (Debian: apt-get install g++; or pip install ziglang)" in line
    assert "then run `make native` or install again" in line
    assert not tree.target.exists()
    assert tree.build().returncode == 1
    assert tree.run("build_library.py", "--missing-tools").stdout == "\n"


def test_a_nonexistent_compiler_is_named(tree: Tree) -> None:
    tree.environment["CXX"] = "no-such-compiler -m64"
    assert "since CXX is no-such-compiler -m64, which was not found:" in tree.build().stderr


@needs_tools
def test_unsuitable_headers_are_named(tree: Tree) -> None:
    tree.write_header(20)
    result = tree.build()
    assert "there are no headers of ONNX Runtime: decoding takes" in result.stderr
    assert f"{tree.headers}/onnxruntime_c_api.h has interface 20; 21 or later" in result.stderr


def test_given_or_cached_headers_are_used(tree: Tree) -> None:
    """Headers that are given or were downloaded before need no network."""
    result = tree.run("headers.py")
    assert result.stdout.strip() == str(tree.headers)
    given = tree.environment.pop("ONNXRUNTIME_INCLUDE_DIR")
    kept = Path(tree.environment["XDG_CACHE_HOME"]) / "bita-edge" / "onnxruntime-1.21.0" / "include"
    kept.parent.mkdir(parents=True)
    shutil.copytree(given, kept)
    found = Path(tree.run("headers.py").stdout.strip())
    assert found == kept or found.is_relative_to("/usr")
    tree.environment["ONNXRUNTIME_INCLUDE_DIR"] = str(tree.native)
    result = tree.run("headers.py")
    assert result.returncode == 1
    assert f"{tree.native} has no onnxruntime_c_api.h" in result.stderr
