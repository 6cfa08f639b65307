"""The script that checks an engine on a GPU runs here at a tiny size on the CPU."""

import json
from pathlib import Path

import pytest
from make_tiny_engine import write_plain_model

pytest.importorskip("torch")
pytest.importorskip("transformers")

import gpu
from gpu_baselines import HandLoop

from bita.errors import ModelError
from bita.export.sources import open_checkpoint

TINY = (
    *("--backend", "ort-cpu", "--precision", "fp32", "--capacity", "320", "--verified", "1"),
    *("--timed", "1", "--max-new-tokens", "12", "--max-rows", "32", "--repeats", "1"),
    *("--torch-device", "cpu", "--torch-dtype", "float32", "--copied-bytes", "1000000"),
)


@pytest.mark.slow
def test_all_parts_of_the_report_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_plain_model(tmp_path / "model")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "The quick brown fox"}\n')
    out, engine = tmp_path / "gpu.json", tmp_path / "engine"
    arguments = [str(model), *TINY, "--engine", str(engine), "--out", str(out)]
    assert gpu.main([*arguments, "--prompts", str(prompts)]) == 0
    report = json.loads(out.read_text())
    parts = {"device", "options", "build", "verify", "speed", "latency", "ceiling"}
    assert report.keys() == parts
    for each in report["verify"]["comparisons"].values():
        assert each["identical"] == each["prompts"] == 1
    assert report["speed"]["speeds"]["tree, graph"]["tokens_per_second"] > 0
    assert report["latency"]["t32_over_t2"] > 0.5
    ceiling = report["ceiling"]
    assert ceiling["AR"]["same_text_as_hand_loop"] is True
    assert ceiling["hand loop"]["step_ms"] > 0
    assert ceiling["transformers"]["step_ms"] > 0
    assert "verify, random adapter: 1 of 1 identical" in capsys.readouterr().out


def test_a_failing_part_is_reported_and_the_others_still_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_plain_model(tmp_path / "model")
    out = tmp_path / "gpu.json"
    arguments = [str(model), *TINY, "--engine", str(tmp_path / "engine"), "--out", str(out)]
    missing = str(tmp_path / "missing.jsonl")
    assert gpu.main([*arguments, "--skip", "ceiling", "--prompts", missing]) == 1
    report = json.loads(out.read_text())
    assert "missing.jsonl" in report["verify"]["failed"]
    assert report["latency"]["rows"]
    assert "ceiling" not in report
    assert "verify: FAILED: " in capsys.readouterr().out


def test_the_hand_written_loop_refuses_other_families(tmp_path: Path) -> None:
    from make_tiny_engine import CONFIG

    config = {**CONFIG, "model_type": "qwen3"}
    checkpoint = open_checkpoint(str(write_plain_model(tmp_path / "model", config=config)))
    with pytest.raises(ModelError, match="supports plain Llamas only, not qwen3"):
        HandLoop(checkpoint, 64, "float32", "cpu")
