"""Tests of wheels for Linux: names, contents, and errors when one cannot be built."""

import os
import platform
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
from libbita_programs import answer_of_generate, answers_of_chat, run, tiny_engine
from made_once import made_once
from native_engines import require_library
from paths import ROOT

from bita import Session

TOOLS = ROOT / "runtime" / "native" / "build_tools"
PYTHON = ROOT / ".cache" / "wheels" / "bin" / "python"  # installed by `make wheels`
NATIVE = "bita/runtime/native"
LIBRARY = f"{NATIVE}/libbita_operators.so"
LIBBITA = f"{NATIVE}/libbita.so.0"
FOR_PROGRAMS = [  # in C and C++
    f"{NATIVE}/{name}"
    for name in (
        "include/bita/bita.h",
        "include/bita/bita.hpp",
        "cmake/bitaConfig.cmake",
        "cmake/bitaConfigVersion.cmake",
        "third_party_licenses.txt",
    )
]
ADAPTER = "bita/adapters/smollm2-135m-instruct.safetensors"
MACHINES = {"x86_64": 62, "aarch64": 183}
HERE = platform.machine()

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="wheels for Linux")
needs_wheel_tools = pytest.mark.skipif(not PYTHON.is_file(), reason="needs .cache/wheels")


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the modules of the build importable."""
    monkeypatch.syspath_prepend(str(TOOLS))
    yield
    for name in ("build_wheels", "older_glibc", "packages", "headers", "build_library"):
        sys.modules.pop(name, None)


def library_of(processor: str) -> bytes:
    """Return the start of an ELF file."""
    return b"\x7fELF" + bytes(14) + struct.pack("<H", MACHINES[processor]) + bytes(40)


def write_wheel(folder: Path, tag: str, files: dict[str, bytes]) -> Path:
    path = folder / f"bita_edge-0.2.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


GOOD = {
    LIBRARY: library_of("aarch64"),
    LIBBITA: library_of("aarch64"),
    **dict.fromkeys([*FOR_PROGRAMS, ADAPTER], b""),
}
TAG = "py3-none-manylinux_2_27_aarch64"


def without(name: str) -> dict[str, bytes]:
    """Return the files of a valid wheel except `name`."""
    return {each: content for each, content in GOOD.items() if each != name}


@pytest.mark.usefixtures("checks")
def test_a_valid_wheel_passes(tmp_path: Path) -> None:
    import build_wheels

    build_wheels.check_wheel(write_wheel(tmp_path, TAG, GOOD), "aarch64")


@pytest.mark.usefixtures("checks")
@pytest.mark.parametrize(
    ("tag", "files", "fault"),
    [
        *[(TAG, without(name), f"it lacks {name}") for name in GOOD],
        (TAG, {**GOOD, LIBRARY: library_of("x86_64")}, r"not for aarch64 \(ELF machine 62\)"),
        (
            TAG,
            {**GOOD, LIBBITA: library_of("x86_64")},
            f"{LIBBITA}: the library is not for aarch64",
        ),
        (TAG, {**GOOD, LIBRARY: b"not a library"}, "not for aarch64"),
        (TAG, {**GOOD, "bita/other.so": b""}, f"the libraries bita/other.so, {LIBBITA}, {LIBRARY}"),
        ("py3-none-any", GOOD, "does not end with py3-none-manylinux_X_Y_aarch64"),
        ("py3-none-linux_aarch64", GOOD, "does not end with py3-none-manylinux_X_Y_aarch64"),
        ("py3-none-manylinux_2_27_x86_64", GOOD, "does not end with"),
        ("py3-none-manylinux_2_34_aarch64", GOOD, "a glibc later than 2.28"),
    ],
)
def test_an_invalid_wheel_is_refused(
    tag: str, files: dict[str, bytes], fault: str, tmp_path: Path
) -> None:
    import build_wheels

    with pytest.raises(build_wheels.BuildError, match=fault):
        build_wheels.check_wheel(write_wheel(tmp_path, tag, files), "aarch64")


WAITING = """
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <random>
extern "C" void* dlsym(void*, const char*) { return nullptr; }  // as in an older glibc
int main() {
  std::mutex mutex;
  std::condition_variable condition;
  std::unique_lock<std::mutex> lock(mutex);
  for (int ms : {1, 40}) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
    const auto found = condition.wait_until(lock, until);
    const auto late = std::chrono::steady_clock::now() - until;
    std::printf("%d ", found == std::cv_status::timeout && late < std::chrono::seconds(20));
  }
  std::random_device source;
  std::printf("%d\\n", source() != source() || source() != source());
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_replacements_for_newer_glibc_functions_work(tmp_path: Path) -> None:
    """Our own functions wait on a steady clock and produce random numbers."""
    (tmp_path / "waiting.cpp").write_text(WAITING, encoding="utf-8")
    program = tmp_path / "waiting"
    sources = [str(tmp_path / "waiting.cpp"), str(TOOLS / "older_glibc.cpp")]
    run(["g++", "-std=c++17", "-pthread", *sources, "-o", str(program)])
    assert run([str(program)]) == "1 1 1\n"


def run_build(
    python: Path | str, into: Path, processor: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run build_wheels.py with these environment variables."""
    command = [str(python), str(TOOLS / "build_wheels.py"), "--into", str(into)]
    return subprocess.run(
        [*command, "--processor", processor],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_missing_packages_are_named(tmp_path: Path) -> None:
    """The option -S hides the packages of the environment that runs the tests."""
    command = [sys.executable, "-S", str(TOOLS / "build_wheels.py"), "--into"]
    result = subprocess.run([*command, str(tmp_path / "dist")], capture_output=True, text=True)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "no wheel, since there is no auditwheel and no build and no ziglang here" in line
    assert "pip install -r" in line
    assert not (tmp_path / "dist").exists()


@needs_wheel_tools
def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    other = "aarch64" if HERE == "x86_64" else "x86_64"
    result = run_build(PYTHON, tmp_path / "dist", other, PATH=str(tmp_path), CXX="")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    package = f"g++-{other.replace('_', '-')}-linux-gnu"
    assert f"no wheel, since there is no {other}-linux-gnu-g++ (Debian: apt install" in line
    assert package in line
    assert not (tmp_path / "dist").exists()
    result = run_build(PYTHON, tmp_path / "dist", HERE, CXX="no-such-compiler")
    assert "CXX is no-such-compiler, which was not found" in result.stderr


@pytest.fixture(scope="module", params=tuple(MACHINES))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a real wheel; the name of its folder is the processor."""
    processor = request.param
    compiler = "c++" if processor == HERE else f"{processor}-linux-gnu-g++"
    if not PYTHON.is_file() or shutil.which(compiler) is None:
        pytest.skip(f"needs .cache/wheels and {compiler}")

    def build(folder: Path) -> None:
        result = run_build(PYTHON, folder / processor, processor)
        if "there are no libpcre2-dev" in result.stderr:
            pytest.skip(f"needs libraries of {processor}, of the system or by a network")
        assert result.returncode == 0, result.stderr

    (wheel,) = (made_once(tmp_path_factory, f"wheel-{processor}", build) / processor).iterdir()
    return wheel


@pytest.mark.thorough
def test_a_wheel_has_the_libraries_of_its_processor(built: Path) -> None:
    """It also has the Python package, without tests, sources or a library of this system."""
    with zipfile.ZipFile(built) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        libraries = [archive.read(name) for name in (LIBRARY, LIBBITA)]
        header = archive.read(f"{NATIVE}/include/bita/bita.h")
    for library in libraries:
        assert library[:4] == b"\x7fELF"
        assert int.from_bytes(library[18:20], "little") == MACHINES[built.parent.name]
    assert ADAPTER in names
    native = {name for name in names if name.startswith(f"{NATIVE}/")}
    python = {name for name in native if name.endswith(".py")}
    assert native - python == {LIBRARY, LIBBITA, *FOR_PROGRAMS}
    assert [name for name in names - native if name.endswith((".so", ".o", ".cpp", ".h"))] == []
    assert header == (ROOT / "runtime" / "native" / "include" / "bita" / "bita.h").read_bytes()
    assert {name.split("/")[0] for name in names} == {"bita", "bita_edge-0.2.0.dist-info"}
    assert "tests" not in {part for name in names for part in name.split("/")}
    assert built.stat().st_size < 6e6


@pytest.mark.thorough
def test_auditwheel_agrees_with_the_name(built: Path) -> None:
    command = [str(PYTHON), "-m", "auditwheel", "show", str(built)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tag = built.stem.rpartition("-")[2]
    assert f'the following platform tag: "{tag}"' in output
    assert tag.endswith(f"_{built.parent.name}")


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel of this processor into a folder, next to ONNX Runtime."""
    if built.parent.name != HERE:
        pytest.skip(f"runs on {built.parent.name}")
    require_library()
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*command, "--target", str(folder), str(built)], check=True)
    (folder / "onnxruntime").symlink_to(Path(onnxruntime.__file__).parent)
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_engine(tmp_path_factory.mktemp("native"))


def run_python(installed: Path, code: str, *words: str) -> list[str]:
    """Return the lines that a program prints with the installed packages."""
    command = [sys.executable, "-c", code, *words]
    return run(command, folder=installed, PYTHONPATH=str(installed)).splitlines()


@pytest.mark.thorough
def test_an_installed_wheel_decodes(installed: Path, engine: Path) -> None:
    """It uses its own library, and generates the same tokens as the library here."""
    code = (
        "import sys; from bita import Session\n"
        "from bita.runtime.native.library import loaded_operators\n"
        "print(loaded_operators().path)\n"
        "print(Session.open(sys.argv[1]).generate('hello', max_new_tokens=12).token_ids)"
    )
    expected = Session.open(engine).generate("hello", max_new_tokens=12).token_ids
    lines = run_python(installed, code, str(engine))
    assert lines == [str(installed / LIBRARY), str(expected)]


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_c_programs_are_built_with_an_installed_wheel(
    installed: Path, engine: Path, tmp_path: Path
) -> None:
    """The commands are those of the guide; libbita finds ONNX Runtime among the packages."""
    code = "import bita.native as n; print(n.include_dir()); print(n.library_dir())"
    include, folder = run_python(installed, code)
    program = tmp_path / "generate"
    source = ROOT / "examples" / "c" / "generate.c"
    link = [f"-L{folder}", "-l:libbita.so.0", f"-Wl,-rpath,{folder}"]
    run(["gcc", str(source), f"-I{include}", *link, "-o", str(program)])
    out = run([str(program), str(engine), "hello"], LD_LIBRARY_PATH="")
    wanted = Session.open(engine, num_threads=1).generate("hello", max_new_tokens=256).text
    assert answer_of_generate(out) == wanted


@pytest.mark.thorough
@pytest.mark.skipif(
    not all(map(shutil.which, ("g++", "cmake", "ninja"))), reason="needs g++, cmake and ninja"
)
def test_cmake_finds_the_library_of_an_installed_wheel(
    installed: Path, engine: Path, tmp_path: Path
) -> None:
    (folder,) = run_python(installed, "import bita.native as n; print(n.cmake_dir())")
    place = ["-S", str(ROOT / "examples" / "cpp"), "-B", str(tmp_path), "-G", "Ninja"]
    run(["cmake", *place, f"-Dbita_DIR={folder}"])
    run(["cmake", "--build", str(tmp_path)])
    out = run([str(tmp_path / "chat"), str(engine)], "Hello\n", LD_LIBRARY_PATH="")
    wanted = Session.open(engine, num_threads=1).conversation().send("Hello", max_new_tokens=256)
    assert answers_of_chat(out) == [wanted.run().text]
