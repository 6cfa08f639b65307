"""Tests of benchmarks/guard_regret.py on a tiny engine."""

import json
import shutil
from pathlib import Path

import guard_regret
import pytest

from bita.calibration.acceptance import measure_acceptance
from bita.engine import CALIBRATION_FILE, open_engine, revise_engine

PROMPTS = ["Hello tree", "A mask token", "The quick brown fox. The quick brown fox. The quick"]


def test_the_report_compares_free_and_guarded_drafts(
    tiny_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "engine", tmp_path / "report.json"
    shutil.copytree(tiny_engine, path)
    acceptance = measure_acceptance(open_engine(path), PROMPTS, 60, num_threads=1)
    revise_engine(
        open_engine(path), {CALIBRATION_FILE: json.dumps({"acceptance": acceptance.to_json()})}
    )
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS))
    options = ["--costs", "1,1.01,1.02", "--out", str(out), "--threads", "1"]
    for more in ([], ["--prompts", str(prompts), "--limit", "2", "--max-new-tokens", "60"]):
        assert guard_regret.main([str(path), *options, *more]) == 0
        (result,) = json.loads(out.read_text())["engines"].values()
        assert result["num_texts"] == (2 if more else 3)
        assert result["speed"]["free"] > 1
        assert result["mean_regret"]["free"] >= 0
        assert all(free > 0 and guarded > 0 for _, free, guarded in result["texts"])
    assert "worst_text" in capsys.readouterr().out


def test_a_missing_acceptance_and_invalid_costs_are_reported(
    tiny_engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard_regret.main([str(tiny_engine)]) == 1
    assert "has no acceptance in its calibration.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        guard_regret.main([str(tiny_engine), "--costs", "2,3"])
    assert "rise from 1" in capsys.readouterr().err
