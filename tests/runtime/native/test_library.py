"""Finding, loading and refusing the library of native operators."""

import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pytest

from bita.errors import LibraryMissingError
from bita.runtime.native import library

FUNCTIONS = """
extern "C" {
const char* bita_operators_isa(void) { return "plain"; }
const char* bita_operators_isas(void) { return "fast plain"; }
int bita_operators_use_isa(const char*) { return 0; }
int bita_operators_read_weights(const char*) { return -1; }
int bita_operators_take_weights(void) { return -1; }
void* bita_operators_make_guesses(const void*) { return nullptr; }
void bita_operators_drop_guesses(void*) {}
int bita_operators_extend_guesses(void*, int, const long long*, long long) { return -1; }
int bita_operators_look_guesses(void*, long long, long long, void*) { return -1; }
int bita_operators_draw(void* task) { return -1; }
void* RegisterCustomOps(void*, const void*) { return nullptr; }
int bita_operators_version(void) { return VERSION; }
}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library's path, in a folder that is empty."""
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    return tmp_path / library.NAMES.get(library.sys.platform, "libbita_operators.so")


def compile_library(path: Path, text: str, version: int = library.VERSION) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    source = path.with_suffix(".cpp")
    source.write_text(text, encoding="utf-8")
    flags = ["-shared", "-fPIC", f"-DVERSION={version}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(path)], check=True)


def test_a_missing_library_is_reported_with_its_cost_and_fix(place: Path) -> None:
    with pytest.raises(LibraryMissingError) as raised:
        library.operators_library()
    message = str(raised.value)
    assert f"no file {place}." in message
    assert "decoding takes 2 to 3.3 times as long" in message
    assert "Install a C++ compiler, then run `make native`" in message


@pytest.mark.parametrize("content", [b"", b"not a library at all\n" * 100, b"\x7fELF" + b"\0" * 60])
def test_a_file_that_is_not_a_library_is_refused(content: bytes, place: Path) -> None:
    place.write_bytes(content)
    with pytest.raises(LibraryMissingError, match=r"cannot be loaded: .*bita_operators"):
        library.loaded_operators()


def test_an_unrelated_library_is_refused(place: Path) -> None:
    compile_library(place, "int bita_operators_version(void) { return 1; }")
    with pytest.raises(LibraryMissingError, match=r"cannot be loaded: .*bita_operators_version"):
        library.loaded_operators()


def test_a_library_of_another_version_is_refused(place: Path) -> None:
    compile_library(place, FUNCTIONS, version=7)
    with pytest.raises(
        LibraryMissingError, match=rf"has version 7; this bita-edge needs {library.VERSION}\."
    ):
        library.loaded_operators()


def test_the_version_and_isas_of_a_library_are_read(place: Path) -> None:
    compile_library(place, FUNCTIONS)
    expected = library.Operators(place, library.VERSION, "plain", ("fast", "plain"))
    assert library.loaded_operators() == expected


def test_the_built_library_runs_on_every_isa_it_lists() -> None:
    """The list ends with the plain ISA, and ONNX Runtime accepts the library."""
    try:
        found = library.loaded_operators()
    except LibraryMissingError as error:
        pytest.skip(str(error))
    assert found.isa == found.isas[0]
    assert found.isas[-1] == "plain"
    try:
        for isa in found.isas:
            library.use_isa(isa)
            assert library.loaded_operators().isa == isa
        with pytest.raises(
            ValueError, match=r"ISA 'none' is not supported here; use one of .*plain"
        ):
            library.use_isa("none")
    finally:
        library.use_isa(found.isa)
    onnxruntime.SessionOptions().register_custom_ops_library(str(found.path))
