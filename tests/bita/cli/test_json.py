"""`--json`: standard output holds one JSON object and nothing else, with the same exit status."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from make_tiny_engine import write_plain_model

from bita.calibration.verify import Comparison, Divergence
from bita.cli.main import main
from bita.cli.shared.output import as_json
from bita.cli.verify import comparison_facts

FEW = ("--threads", "1", "--limit", "3", "--max-new-tokens", "8")
UNITS = ("_ms", "_bytes", "_per_second", "_per_step", "_per_token", "_share")


def run_json(capsys: pytest.CaptureFixture[str], *args: object, status: int = 0) -> dict[str, Any]:
    """Run a command with --json and return the object on standard output."""
    assert main([*map(str, args), "--json"]) == status
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    report = json.loads(out)
    assert isinstance(report, dict)
    check_keys(report)
    return report


def check_keys(value: Any) -> None:
    """Check that every key is in snake_case and that no key with a unit holds a string."""
    if isinstance(value, list):
        for each in value:
            check_keys(each)
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        assert re.fullmatch(r"[a-z][a-z0-9_.-]*", name), name
        if name.endswith(UNITS):
            assert not isinstance(inner, str), name
        check_keys(inner)


@pytest.fixture
def own_engine(tiny_engine: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny engine that the test may change."""
    return Path(shutil.copytree(tiny_engine, tmp_path / "engine"))


def test_generate_reports_text_tokens_and_times(
    tiny_engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("generate", tiny_engine, "Hello tree", "--max-new-tokens", 12, "--threads", 1)
    assert main([*map(str, asked)]) == 0
    text = capsys.readouterr().out
    report = run_json(capsys, *asked)
    assert report["text"] + "\n" == text
    assert len(report["token_ids"]) == report["stats"]["new_tokens"] == 12
    assert report["finish_reason"] == "length"
    assert report["prompt_tokens"] > 2
    assert report["stats"]["prefill_ms"] > 0
    assert report["stats"]["tokens_per_second"] > 0
    assert "compare" not in report


def test_generate_reports_the_gain_from_drafts(
    tiny_engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("generate", tiny_engine, "Hello tree", "--max-new-tokens", 40, "--threads", 1)
    gain = run_json(capsys, *asked, "--tree", "ngrams:3", "--compare")["compare"]
    assert gain["same_text"]
    assert gain["first_difference"] is None
    assert gain["speedup"] == pytest.approx(
        gain["drafted_tokens_per_second"] / gain["plain_tokens_per_second"], rel=1e-4
    )
    assert gain["tokens_per_step"] == pytest.approx(
        1 + gain["mask_tokens_per_step"] + gain["ngram_tokens_per_step"], rel=1e-4
    )
    plain = run_json(capsys, *asked, "--tree", "ar", "--compare")["compare"]
    assert (plain["has_drafts"], plain["speedup"]) == (False, None)
    assert plain["plain_tokens_per_second"] > 0


def test_inspect_reports_engines_adapters_and_models(
    tiny_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = run_json(capsys, "inspect", tiny_engine)
    assert (engine["kind"], engine["cache_slots"], engine["mode"]) == ("engine", 384, "tree")
    assert engine["size_bytes"] == sum(
        each.stat().st_size for each in tiny_engine.iterdir() if each.name != "manifest.json"
    )
    assert engine["adapter"]["masks"] == 3
    assert engine["tree"]["rows"] == 52
    assert (engine["quality"], engine["steps"], engine["memory"]) == (None, None, None)
    adapter = run_json(capsys, "inspect", tiny_engine / "adapter.safetensors")
    assert (adapter["kind"], adapter["prefix_length"]) == ("adapter", 2)
    model = run_json(capsys, "inspect", write_plain_model(tmp_path / "model"))
    assert (model["kind"], model["attention_heads"], model["head_size"]) == ("model", 4, 16)


def test_verify_reports_each_comparison(
    tiny_engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run_json(capsys, "verify", tiny_engine, "--model", "-", *FEW)
    assert report["passed"]
    assert [each["name"] for each in report["comparisons"]] == ["own adapter", "random adapter"]
    for each in report["comparisons"]:
        assert each["prompts"] == each["identical_prompts"] == 3
        assert (each["passed"], each["differences"]) == (True, [])


def test_each_difference_has_its_position_and_whether_it_is_allowed() -> None:
    comparison = Comparison("here", 0.5, num_prompts=2)
    comparison.divergences = [Divergence(0, 3, 7, None, 0.1), Divergence(1, 4, 7, 8, float("inf"))]
    facts = as_json(comparison_facts(comparison))
    assert not facts["passed"]
    assert facts["differences"] == [
        {
            "prompt": 0,
            "new_token": 3,
            "expected_token_id": 7,
            "found_token_id": None,
            "logit_margin": 0.1,
            "allowed": True,
        },
        {
            "prompt": 1,
            "new_token": 4,
            "expected_token_id": 7,
            "found_token_id": 8,
            "logit_margin": None,
            "allowed": False,
        },
    ]


@pytest.mark.slow
def test_each_calibration_stage_reports_its_measurements(
    own_engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    acceptance = run_json(capsys, "calibrate", "acceptance", own_engine, *FEW)
    assert (acceptance["stage"], acceptance["kept"]) == ("acceptance", [])
    assert [each["mask"] for each in acceptance["masks"]] == [0, 1, 2]
    few_rows = (*FEW, "--max-rows", "3", "--repeats", "1")
    latency = run_json(capsys, "calibrate", "latency", own_engine, *few_rows)
    assert latency["rows"] == [1, 2, 3]
    assert len(latency["median_ms"]) == len(latency["cache_tokens"])
    choice = run_json(capsys, "calibrate", "tree", own_engine, *few_rows)
    assert choice["kept"] == ["acceptance", "latency"]
    assert choice["ar"]["measured_tokens_per_second"] > 0
    assert choice["chosen"]["tree"]
    device = ("--what-if", "orin-nano")
    elsewhere = run_json(capsys, "calibrate", "tree", own_engine, *few_rows, *device)
    assert elsewhere["ar"]["measured_tokens_per_second"] is None
    engine = run_json(capsys, "inspect", own_engine)
    assert engine["steps"]["rows"] == [1, 2, 3]
    assert engine["memory"]["decoding_host_bytes"] > 10e6
    assert engine["tree"]["chosen_because"] == choice["why"]


def test_engine_reports_whether_it_was_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = write_plain_model(tmp_path / "model"), tmp_path / "out"
    options = ("--precision", "fp32", "--uncalibrated", "--out", out, "--if-needed")
    for built in (True, False):
        report = run_json(capsys, "engine", model, *options)
        assert (report["engine"], report["built"]) == (str(out), built)
        assert (report["tuned"], report["adapter"]) == (False, None)
        assert (report["quality"], report["tree_choice"]) == (None, None)
        assert report["size_bytes"] > 1e5


@pytest.mark.parametrize(
    "args",
    [
        ("generate", "nowhere", "hi"),
        ("inspect", "nowhere"),
        ("verify", "nowhere"),
        ("calibrate", "tree", "nowhere"),
        ("engine", "nowhere"),
        ("generate", "ENGINE", " "),
    ],
)
def test_after_an_error_standard_output_is_empty(
    args: tuple[str, ...], tiny_engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tiny_engine) if arg == "ENGINE" else arg for arg in args]
    assert main([*words, "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bita: error: ")
    assert err.count("\n") == 1


def test_the_object_is_valid_in_any_output_encoding(tiny_engine: Path) -> None:
    command = [sys.executable, "-m", "bita", "generate", str(tiny_engine), "hi", "--json"]
    result = subprocess.run(
        [*command, "--regex", "café"],
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        capture_output=True,
        check=True,
    )
    assert json.loads(result.stdout)["text"] == "café"


def test_values_that_json_lacks_become_null_or_text() -> None:
    value = {"a": float("nan"), "b": (1.23456789, 123456789, Path("x")), "c": {"d": float("-inf")}}
    assert as_json(value) == {"a": None, "b": [1.23457, 123456789, "x"], "c": {"d": None}}
