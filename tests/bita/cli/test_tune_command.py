"""`bita tune` end to end on a tiny model: data, training, adapter, verified engine, resuming."""

import json
from pathlib import Path

import pytest
from make_tiny_engine import write_plain_model

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from bita.adapter import Adapter
from bita.cli.main import main

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("few_bonus_prompts")
PROMPTS = [{"prompt": f"{word} number {n}"} for n in range(4) for word in ("Tree", "Mask", "Draft")]
FAST = ["--num-steps", "12", "--batch-size", "2", "--num-anchors", "8", "--prefix-length", "4"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_plain_model(tmp_path / "model")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in PROMPTS))
    return path


def tune(model: Path, work: Path, *more: object) -> int:
    out = work / "adapter.safetensors"
    fixed = ["tune", model, "--work", work, "--out", out, "--max-new-tokens", 16, *FAST]
    return main([str(arg) for arg in (*fixed, "--device", "cpu", *more)])


def test_prompts_lead_to_a_tuned_and_verified_engine(
    model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    assert tune(model, work, "--prompts", prompts, "--evaluate-every", 5) == 0
    out = capsys.readouterr().out
    assert "triangle:" in out
    assert "tokens per step" in out
    log = [json.loads(line) for line in (work / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(12))
    assert sum("evaluation" in entry for entry in log) == 3
    adapter = Adapter.load(work / "adapter.safetensors")
    assert (adapter.num_masks, adapter.prefix_length) == (3, 4)
    assert "prompts.jsonl" in adapter.tuned_on
    engine = tmp_path / "engine"
    args = ["engine", model, "--adapter", work / "adapter.safetensors", "--uncalibrated"]
    assert main([str(arg) for arg in (*args, "--precision", "fp32", "--out", engine)]) == 0
    assert main(["verify", str(engine), "--limit", "3", "--max-new-tokens", "16"]) == 0


@pytest.mark.slow
def test_a_second_run_changes_nothing(model: Path, prompts: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    tune(model, work, "--prompts", prompts)
    first = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    tune(model, work, "--prompts", prompts)
    assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == first


@pytest.mark.slow
def test_masks_pair_scores_and_lora_can_be_tuned_in_turn(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    """Each run starts from the adapter of the run before it."""
    assert tune(model, tmp_path / "a", "--prompts", prompts, "--pair-rank", 0) == 0
    masks = tmp_path / "a" / "adapter.safetensors"
    data = ["--data", tmp_path / "a" / "data", "--start-from"]
    assert tune(model, tmp_path / "b", *data, masks, "--pair-rank", 4, "--num-steps", 0) == 0
    scored = tmp_path / "b" / "adapter.safetensors"
    more = ["--lora-rank", 2, "--pair-rank", 4]
    assert tune(model, tmp_path / "c", *data, scored, *more) == 0
    first, second, third = (Adapter.load(tmp_path / name / "adapter.safetensors") for name in "abc")
    assert first.pair_rank == first.lora_rank == second.lora_rank == 0
    assert third.pair_rank == 4
    assert (first.mask_embeddings == second.mask_embeddings).all()
    assert third.lora_rank == 2
    assert (third.mask_embeddings != first.mask_embeddings).any()
    assert abs(third.mask_embeddings - first.mask_embeddings).max() < 0.2  # 12 steps of 0.01


@pytest.mark.slow
def test_changes_that_a_run_cannot_continue_from_are_reported(
    model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(model, tmp_path / "a", "--prompts", prompts) == 0
    masks, data = tmp_path / "a" / "adapter.safetensors", ["--data", tmp_path / "a" / "data"]
    assert tune(model, tmp_path / "b", *data, "--start-from", masks, "--num-masks", 4) == 2
    assert "its num_masks is 3, not 4" in capsys.readouterr().err
    assert tune(model, tmp_path / "a", "--prompts", prompts, "--start-from", masks) == 2
    assert "on other conversations, or from another adapter" in capsys.readouterr().err
    assert tune(model, tmp_path / "b", *data, "--start-from", tmp_path / "none") == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_an_engine_generates_the_same_responses_as_the_model(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    args = ["engine", model, "--precision", "fp32", "--uncalibrated", "--out", tmp_path / "engine"]
    assert main([str(arg) for arg in args]) == 0
    tune(model, tmp_path / "a", "--prompts", prompts, "--generator", tmp_path / "engine")
    tune(model, tmp_path / "b", "--prompts", prompts)
    shards = [(tmp_path / name / "data" / "shard-00000.jsonl").read_text() for name in "ab"]
    assert shards[0] == shards[1]
    assert len(shards[0].splitlines()) == len(PROMPTS)
    narrow = ["engine", model, "--capacity", 24, "--uncalibrated", "--out", tmp_path / "narrow"]
    assert main([str(arg) for arg in narrow]) == 0
    options = ["--prompts", prompts, "--generator", tmp_path / "narrow"]
    assert tune(model, tmp_path / "c", *options, "--max-new-tokens", 24) == 2


def test_without_prompts_the_model_writes_them(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random model writes no usable prompt, and the error says so."""
    assert tune(model, tmp_path / "work", "--num-conversations", 6) == 2
    err = capsys.readouterr().err
    assert "self-written prompts are usable" in err
    assert "give prompts in a file" in err


@pytest.mark.slow
def test_data_of_an_earlier_run_gives_the_same_adapter(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    work, again = tmp_path / "work", tmp_path / "again"
    assert tune(model, work, "--prompts", prompts) == 0
    assert tune(model, again, "--data", work / "data") == 0
    files = [(folder / "adapter.safetensors").read_bytes() for folder in (work, again)]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--decay", "3"], "decay is 3.0, not in (0, 1]"),
        (["--prompts", "none.jsonl"], "cannot read prompts from none.jsonl"),
        (["--data", "nowhere"], "nowhere"),
        (["--num-conversations", "2"], "give at least 5"),
        (["--generator", "nowhere"], "nowhere is not a directory"),
    ],
)
def test_errors_are_reported_on_one_line(
    model: Path,
    prompts: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = more if "--prompts" in more else [*more, "--prompts", str(prompts)]
    assert tune(model, tmp_path / "work", *given) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
