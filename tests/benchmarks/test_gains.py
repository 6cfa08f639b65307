"""Tests of benchmarks/gains.py on a tiny engine."""

import json
from pathlib import Path

import gains
import pytest


@pytest.fixture
def prompts(tmp_path: Path) -> list[str]:
    """Write a file with categories and one without."""
    sorted_by, plain = tmp_path / "questions.jsonl", tmp_path / "code.jsonl"
    lines = [
        {"category": category, "turns": [f"Hello {word}"]}
        for category in ("writing", "math")
        for word in ("tree", "mask")
    ]
    sorted_by.write_text("\n".join(map(json.dumps, lines)))
    plain.write_text(json.dumps({"prompt": "def tree():"}))
    return ["--prompts", str(sorted_by), "--prompts", str(plain)]


def test_every_kind_of_text_is_compared_with_plain_decoding(
    tiny_engine: Path, prompts: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "gains.json"
    engines = [f"one={tiny_engine}", f"two={tiny_engine}"]
    options = ["--max-new-tokens", "12", "--turns", "2", "--threads", "1", "--out", str(out)]
    assert gains.main([*engines, *prompts, *options]) == 0
    report = json.loads(out.read_text())
    assert report["num_prompts"] == 5
    assert [*report["engines"]] == ["one", "two"]
    for engine in report["engines"].values():
        kinds = engine["by_kind"]
        assert {kind: row["prompts"] for kind, row in kinds.items()} == {
            "writing": 2,
            "math": 2,
            "code": 1,
        }
        assert sum(row["tokens"] for row in kinds.values()) == engine["all"]["tokens"]
        assert engine["same_text"] == 5  # float32, and a tiny model has wide margins
        for row in (*kinds.values(), engine["all"]):
            assert row["answers"]["min"] <= row["times_plain"] <= row["answers"]["max"]
            parts = 1 + row["mask_tokens_per_step"] + row["guessed_tokens_per_step"]
            assert row["tokens_per_step"] == pytest.approx(parts, abs=0.002)


def test_an_engine_without_a_name_is_refused(
    tiny_engine: Path, prompts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gains.main([str(tiny_engine), *prompts, "--out", "x.json"])
    assert "is not of the form NAME=ENGINE" in capsys.readouterr().err
