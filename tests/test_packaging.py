"""One package from four folders; a runtime that stays lean."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("bita", "export", "runtime", "calibration")


def test_importing_the_runtime_brings_nothing_heavy() -> None:
    code = (
        "import sys, bita.runtime.session\n"
        "heavy = ['torch', 'transformers', 'onnx', 'onnx_ir', 'gguf', 'bita.export']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


SPY = """
import os, sys
class Spy:
    def find_spec(self, name, *more):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Spy())
"""


@pytest.mark.parametrize("module", ["ort_backend", "ort_cuda_backend", "session"])
def test_telemetry_is_off_before_onnxruntime_is_imported(module: str) -> None:
    code = f"{SPY}import bita.runtime.{module}, onnxruntime"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "1"


def test_links_point_to_the_rooms() -> None:
    for room in ROOMS[1:]:
        link = ROOT / "bita" / room
        assert link.is_symlink()
        assert link.readlink() == Path("..") / room


@pytest.mark.slow
def test_the_wheel_holds_the_tree(tmp_path: Path) -> None:
    pytest.importorskip("build")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {"bita/py.typed", "bita/calibration/prompts.jsonl"}
    expected |= {f"bita/calibration/{kind}_prompts.jsonl" for kind in ("calibration", "tree")}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            inside = path.relative_to(ROOT)
            if not any(part in ROOMS[1:] for part in inside.parts[1:]):
                prefix = Path() if room == "bita" else Path("bita")
                expected.add((prefix / inside).as_posix())
    assert packed == expected
