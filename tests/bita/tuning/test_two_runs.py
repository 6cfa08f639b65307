"""Two runs of `bita tune` in one directory run in sequence and give the result of one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from make_tiny_engine import write_plain_model

pytest.importorskip("torch")
pytest.importorskip("transformers")

from bita.cli.main import main

FAST = ("--device", "cpu", "--num-anchors", "8", "--prefix-length", "4", "--max-new-tokens", "16")
WORDS = ("Tree", "Mask", "Draft")


def tune_args(model: Path, work: Path, prompts: Path) -> list[str]:
    out = work / "adapter.safetensors"
    given = ("--work", work, "--out", out, "--prompts", prompts, "--num-steps", 4, *FAST)
    return ["tune", str(model), *map(str, given)]


def read_log(work: Path) -> list[dict[str, Any]]:
    lines = (work / "run" / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.slow
def test_two_runs_at_once_give_the_result_of_one(tmp_path: Path) -> None:
    model = write_plain_model(tmp_path / "model")
    prompts = tmp_path / "prompts.jsonl"
    entries = [{"prompt": f"{word} number {n}"} for n in range(4) for word in WORDS]
    prompts.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert main(tune_args(model, alone, prompts)) == 0
    command = [sys.executable, "-m", "bita", *tune_args(model, shared, prompts)]
    pipe = subprocess.PIPE
    runs = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    assert sum("is being written by" in text for text in errors) <= 1  # 0 if one started late
    names = {path.relative_to(alone) for path in alone.rglob("*") if path.is_file()}
    assert {path.relative_to(shared) for path in shared.rglob("*") if path.is_file()} == names
    shard = Path("data") / "shard-00000.jsonl"
    assert (shared / shard).read_bytes() == (alone / shard).read_bytes()
    assert read_log(shared) == read_log(alone)
    adapters = [(work / "adapter.safetensors").read_bytes() for work in (alone, shared)]
    assert adapters[0] == adapters[1]
