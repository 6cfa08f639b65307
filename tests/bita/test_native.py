"""Tests of the folders in which C and C++ programs find libbita, by kind of installation."""

from collections.abc import Callable
from pathlib import Path

import pytest
from paths import ROOT

from bita import native

FOLDERS = (native.include_dir, native.library_dir, native.cmake_dir)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a package without native code."""
    folder = tmp_path / "packages" / "bita"
    (folder / "runtime" / "native").mkdir(parents=True)
    monkeypatch.setattr(native, "PACKAGE", folder)
    return folder


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_installation_without_libbita_explains_how_to_get_it(
    folder: Callable[[], Path], package: Path
) -> None:
    with pytest.raises(native.LibbitaMissingError) as caught:
        folder()
    assert str(caught.value).startswith("libbita is not in this installation: no file ")
    assert "`make cpp` in a checkout of bita-edge, or install a wheel of" in str(caught.value)


def test_a_wheel_has_all_folders(package: Path) -> None:
    place = package / "runtime" / "native"
    headers = place / "include" / "bita" / "bita.h"
    write(headers, place / "libbita.so.0", place / "cmake" / "bitaConfig.cmake")
    found = [folder() for folder in FOLDERS]
    assert found == [place / "include", place, place / "cmake"]


def test_a_checkout_has_what_make_cpp_installs(package: Path) -> None:
    root = package.parent
    write(root / "runtime" / "native" / "CMakeLists.txt")
    with pytest.raises(native.LibbitaMissingError, match=r"build/prefix\. Run `make cpp` in "):
        native.library_dir()
    library = root / "build" / "prefix" / "lib64" / "libbita.so.0"
    write(library)
    assert native.library_dir() == library.parent
    with pytest.raises(native.LibbitaMissingError, match=r"no bitaConfig\.cmake for "):
        native.cmake_dir()
    write(library.parent / "cmake" / "bita" / "bitaConfig.cmake")
    assert native.cmake_dir() == library.parent / "cmake" / "bita"


def test_the_headers_of_an_editable_installation_are_the_sources() -> None:
    assert native.include_dir() == ROOT / "runtime" / "native" / "include"


def test_the_library_is_named_by_its_soname(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "runtime" / "native" / "build_tools")
    import older_glibc

    assert older_glibc.LIBBITA.name == native.LIBRARY
