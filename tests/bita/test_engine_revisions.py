"""Tests of revising and moving engines, and of unreadable reports in them."""

import shutil
from pathlib import Path

import pytest

from bita.calibration.report import read_quality
from bita.engine import Engine, move_engine, open_engine, revise_engine
from bita.errors import EngineError


@pytest.fixture
def copied(tiny_engine: Path, tmp_path: Path) -> Engine:
    shutil.copytree(tiny_engine, tmp_path / "engine")
    return open_engine(tmp_path / "engine")


def test_a_revised_engine_is_complete(copied: Engine) -> None:
    revised = copied
    for text in ("{}", '{"a": 1}'):
        revised = revise_engine(revised, {"calibration.json": text})
        assert revised.file("calibration.json").read_text() == text
        files = open_engine(revised.path, check_hashes=True).files
        assert files.keys() == {*copied.files, "calibration.json"}
        assert revised.file("model.onnx.data").stat().st_nlink == 1  # onnx refuses hard links


def test_a_moved_engine_replaces_only_an_engine(copied: Engine, tmp_path: Path) -> None:
    shutil.copytree(copied.path, tmp_path / "old")
    (tmp_path / "old" / "mark").write_text("")
    moved = move_engine(copied, tmp_path / "old")
    assert not moved.file("mark").exists()
    assert not copied.path.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    with pytest.raises(EngineError, match="mine exists and is not an engine"):
        move_engine(moved, tmp_path / "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not readable"),
        ("[]", r"holds \[\], not a JSON object"),
        ('{"quality": 3}', "quality is 3, not a table"),
        ('{"quality": {"kl": "big"}}', "kl is 'big'"),
    ],
)
def test_an_unreadable_report_is_refused(text: str, message: str, copied: Engine) -> None:
    engine = revise_engine(copied, {"calibration.json": text})
    with pytest.raises(EngineError, match=message):
        read_quality(engine)
