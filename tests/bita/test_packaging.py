"""Tests of the package: its contents from four folders, and imports that stay light."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from made_once import made_once
from paths import ROOT

import bita

FOLDERS = ("bita", "export", "runtime", "calibration")
LINKS = (*FOLDERS[1:], "adapters")


def test_importing_the_runtime_imports_no_heavy_package() -> None:
    code = (
        "import sys, bita.runtime.session\n"
        "heavy = ['torch', 'transformers', 'onnx', 'onnx_ir', 'gguf', 'bita.export']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_importing_the_data_modules_imports_no_torch() -> None:
    """The settings and the launcher of tuning are imported by every command, so they count too."""
    names = [f"bita.data.{path.stem}" for path in (ROOT / "bita" / "data").glob("*.py")]
    names = [*names, "bita.tuning.launcher", "bita.tuning.settings"]
    code = (
        "import sys, importlib\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "print([name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert len(names) > 12
    assert result.stdout.strip() == "[]"


def test_the_package_imports_its_names_lazily() -> None:
    """`import bita` imports nothing heavy; names are imported on first access."""
    code = (
        "import sys, bita\n"
        "heavy = ['numpy', 'onnxruntime', 'torch', 'bita.runtime']\n"
        "assert not [name for name in heavy if name in sys.modules]\n"
        "print(sorted(name for name in bita.__all__ if getattr(bita, name).__name__ == name) "
        "== sorted(bita.__all__) and set(bita.__all__) <= set(dir(bita)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "True"
    with pytest.raises(AttributeError, match="'bita' has no attribute 'Sesion'"):
        bita.Sesion  # noqa: B018


SPY = """
import os, sys
class Spy:
    def find_spec(self, name, *more):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Spy())
"""


@pytest.mark.parametrize("module", ["backends.ort_backend", "backends.ort_cuda_backend", "session"])
def test_telemetry_is_off_before_onnxruntime_is_imported(module: str) -> None:
    code = f"{SPY}import bita.runtime.{module}, onnxruntime"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "1"


def test_links_point_to_the_folders() -> None:
    for folder in LINKS:
        link = ROOT / "bita" / folder
        assert link.is_symlink()
        assert link.readlink() == Path("..") / folder


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a source distribution, and a wheel from it, as pip does."""
    pytest.importorskip("build")
    options = {"CMAKE_BUILD_TYPE": "None"}  # without optimization the library builds faster
    return made_once(tmp_path_factory, "dist", lambda folder: build(ROOT, folder, options))


@pytest.fixture
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


def build(source: Path, out: Path, environment: dict[str, str], *options: str) -> str:
    """Run the build and return its output."""
    command = [sys.executable, "-m", "build", "--outdir", str(out), *options, str(source)]
    result = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def expected_contents() -> set[str]:
    """Return the files of a wheel without the library."""
    expected = {"bita/py.typed", "bita/data/openings.txt", "bita/data/prompts.jsonl"}
    expected |= {f"bita/data/{kind}_prompts.jsonl" for kind in ("calibration", "tree")}
    expected |= {f"bita/adapters/smollm2-135m-instruct.{kind}" for kind in ("safetensors", "md")}
    page = ROOT / "runtime" / "serving" / "page"
    expected |= {f"bita/runtime/serving/page/{path.name}" for path in page.iterdir()}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT)
            is_linked = any(part in FOLDERS[1:] for part in inside.parts[1:])
            if not is_linked and (path.parent / "__init__.py").is_file():
                prefix = Path() if folder == "bita" else Path("bita")
                expected.add((prefix / inside).as_posix())
    return expected


@pytest.mark.slow
def test_the_wheel_has_all_modules_and_the_operators(wheel: Path) -> None:
    """The library of native operators makes the wheel one for this system and any Python 3."""
    libraries = {name for name in contents(wheel) if "bita_operators" in name}
    assert contents(wheel) - libraries == expected_contents()
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    assert [Path(name).parent.as_posix() for name in libraries] == ["bita/runtime/native"]
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")


@pytest.mark.slow
def test_a_source_distribution_has_the_sources_of_the_library(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        packed = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    native = ROOT / "runtime" / "native"
    kinds = ("CMakeLists.txt", "build_tools/[a-z]*.*", "**/*.cpp", "**/*.h", "**/*.hpp")
    sources = {path for kind in (*kinds, "fuzz/seeds/*/*", "abi/*") for path in native.glob(kind)}
    folders = {path.relative_to(native).parts[0] for path in sources}
    assert folders >= {"api", "build_tools", "fuzz", "include", "library_tests", "text"}
    assert {path.relative_to(ROOT) for path in sources} | {Path("setup.py")} <= packed
    assert not [path for path in packed if path.suffix in (".so", ".dylib", ".dll", ".pyc")]


@pytest.mark.slow
def test_without_a_compiler_a_wheel_is_plain_python(tmp_path: Path) -> None:
    """One line of the output says what is missing and what that costs."""
    pytest.importorskip("build")
    source = tmp_path / "source"
    leave_out = shutil.ignore_patterns("__pycache__", "*bita_operators.*")
    for name in (*FOLDERS, "adapters"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=leave_out)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    environment = {"PATH": str(tmp_path), "CXX": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    printed = build(source, tmp_path / "dist", environment, "--wheel")
    lines = [line for line in printed.splitlines() if "bita-edge:" in line]
    assert len(lines) == 1
    assert (
        "no native operators, since there is no C++ compiler: decoding takes 2 to 3.3" in lines[0]
    )
    assert "install a C++ compiler" in lines[0]
    (path,) = (tmp_path / "dist").glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    assert contents(path) == expected_contents()


@pytest.mark.slow
def test_an_installed_package_has_the_small_adapter(wheel: Path, tmp_path: Path) -> None:
    """The adapter's card has the license; the wheel stays small."""
    assert wheel.stat().st_size < 5e6
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "from bita.export.adapter_choice import choose_adapter\n"
        "choice = choose_adapter(None, 'smollm2-135m-instruct')\n"
        "print(choice.adapter.num_masks, choice.source)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.stdout == ("3 smollm2-135m-instruct.safetensors, which ships with bita-edge\n"), (
        result.stderr
    )
    card = tmp_path / "bita" / "adapters" / "smollm2-135m-instruct.md"
    assert "Apache-2.0" in card.read_text(encoding="utf-8")
