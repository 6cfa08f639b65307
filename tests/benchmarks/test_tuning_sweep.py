"""Tests of the sweep of tuning settings: drafts without an n-gram match, and intervals."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tuning_sweep
import tuning_sweep_page as page

from bita.tuning.evaluation import DraftQuality
from bita.tuning.settings import TuneSettings
from bita.tuning.training_texts import TrainingText


@pytest.mark.parametrize("name", tuning_sweep.SETS)
def test_all_runs_have_valid_settings(name: str) -> None:
    base, runs = tuning_sweep.SETS[name]
    for changes in runs.values():
        TuneSettings(**{**base, **{k: v for k, v in changes.items() if k != "texts"}})


def test_right_drafts_are_counted_where_the_text_has_no_match() -> None:
    text = TrainingText((1, 2, 3, 4, 2, 3, 9, 8), 3)
    # drafts after 4, 2, 3 and 9; 2 and 3 occur earlier in the text
    ranks = np.array([[1], [1], [2], [1]])
    assert tuning_sweep.by_text(DraftQuality([ranks]), [text]) == [[4, 3, 2, 2]]


def test_differences_are_taken_text_by_text() -> None:
    rng = np.random.default_rng(0)
    places = rng.integers(50, 120, 40)
    right = (places * rng.uniform(0.2, 0.8, 40)).astype(int)
    first = np.stack([places, right, places, right], 1).astype(np.float64)
    better = first + np.array([0, 3, 0, 0])
    gain, low, high = page.difference(better, first, page.ALL)
    assert gain == pytest.approx(100 * 3 * 40 / places.sum())
    assert 0 < low < gain < high < gain + 1  # although single texts differ by 60 points
    assert page.difference(better, first, page.NEW) == (0, 0, 0)


def test_the_table_compares_with_the_first_run() -> None:
    run = {"rows": 2000, "texts": [[10, 5, 4, 1], [20, 10, 8, 2]]}
    other = {**run, "texts": [[10, 8, 4, 1], [20, 10, 8, 2]]}
    lines = page.rows([{"name": "recipe", **run}, {"name": "loss ce", **other}])
    assert lines[0] == "| recipe | 2,000 | 50.0 | 25.0 |"
    assert lines[1].startswith("| loss ce | 2,000 | 60.0, +10.0 (+0.0 to +30.0) | 25.0, +0.0")


def test_each_line_of_the_page_has_the_same_number_of_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {"name": "recipe", "rows": 2000, "texts": [[10, 5, 4, 1], [20, 10, 8, 2]]}
    sweep = tmp_path / "sweep.jsonl"
    sweep.write_text("".join(json.dumps(each) + "\n" for each in (run, {**run, "name": "seed 1"})))
    monkeypatch.setattr("sys.argv", ["tuning_sweep_page.py", str(sweep)])
    assert page.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
