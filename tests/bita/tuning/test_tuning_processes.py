"""`accelerate launch` of `bita tune` in two processes on the CPU equals a run in one process."""

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_engine import write_plain_model
from tiny_models import write_tiny_model

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import psutil
import torch

from bita.adapter import Adapter
from bita.cli.main import main
from bita.errors import TuningError
from bita.tuning.processes import join_processes

DATA_PARALLEL, SHARDED = ("--multi_gpu",), ("--use_fsdp", "--fsdp_version", "2")
LAUNCH = (
    *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
)
FAST = ("--device", "cpu", "--num-anchors", "8", "--prefix-length", "4", "--max-new-tokens", "16")
PROMPTS = [{"prompt": f"{word} number {n}"} for n in range(4) for word in ("Tree", "Mask", "Draft")]
ARRAYS = ("mask_embeddings", "prefix_keys", "prefix_values")
SHARD_SIZES = """
import json, sys
from bita.export.sources import open_checkpoint
from bita.tuning.tuning_base import load_tuning_base
from bita.tuning.processes import join_processes
with join_processes("cpu") as processes:
    base = load_tuning_base(open_checkpoint(sys.argv[1]), "float32", processes, in_4bit=False)
    local = sum(weight.to_local().numel() for weight in base.parameters())
    sizes = [local, sum(weight.numel() for weight in base.parameters())]
    open(f"{sys.argv[2]}/{processes.rank}.json", "w").write(json.dumps(sizes))
"""


def launch(launcher: tuple[str, ...], *args: object) -> "subprocess.Popen[str]":
    """Start two processes of a program in the background."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = ("--main_process_port", str(unused.getsockname()[1]))
    return subprocess.Popen(
        [*LAUNCH, *port, *launcher, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def tune_args(model: Path, work: Path, *more: object) -> list[str]:
    out = work / "adapter.safetensors"
    return [str(arg) for arg in ("tune", model, "--work", work, "--out", out, *FAST, *more)]


def read_log(work: Path) -> list[dict[str, Any]]:
    lines = (work / "run" / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in PROMPTS))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "family", "batch_size"),
    [
        (DATA_PARALLEL, "llama", 3),  # shares of 2 and 1
        pytest.param(  # tied embeddings, windows, buffers
            *(SHARDED, "gemma3_text", 3), marks=pytest.mark.thorough
        ),
        pytest.param(  # one process has no text; fused projections
            *(SHARDED, "phi3", 1), marks=pytest.mark.thorough
        ),
    ],
)
def test_two_processes_equal_one(
    launcher: tuple[str, ...], family: str, batch_size: int, prompts: Path, tmp_path: Path
) -> None:
    model = write_tiny_model(family, tmp_path / "model")
    more: tuple[object, ...] = ("--prompts", prompts, "--num-steps", 6, "--batch-size", batch_size)
    more += ("--dropout", 0.1)
    more += ("--mask-rate", 1e-2, "--prefix-rate", 1e-2)  # rounding errors grow with the steps
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(tune_args(model, one, *more)) == 0
    launched = launch(launcher, "-m", "bita", *tune_args(model, two, *more))
    out, err = launched.communicate()
    assert launched.returncode == 0, err
    assert out.count("on held-out text") == 1
    shard = Path("data") / "shard-00000.jsonl"
    assert (one / shard).read_bytes() == (two / shard).read_bytes()
    expected, found = read_log(one)[:-1], read_log(two)[:-1]  # all but the evaluation
    assert len(expected) == len(found) == 6
    # for the first step; later AdamW divides by small numbers, which affects the norm too
    tolerance, norm_tolerance = 1e-6, 1e-4
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs["num_rows"] == ours["num_rows"]
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=tolerance)
        assert theirs["mask_losses"] == pytest.approx(ours["mask_losses"], rel=tolerance)
        assert theirs["gradient_norm"] == pytest.approx(ours["gradient_norm"], rel=norm_tolerance)
        tolerance, norm_tolerance = 1e-4, 1e-2
    by_one, by_two = (Adapter.load(work / "adapter.safetensors") for work in (one, two))
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(by_one, name), getattr(by_two, name), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "more", "message"),
    [
        (DATA_PARALLEL, ["--decay", "3"], "decay is 3.0, not in (0, 1]"),
        (DATA_PARALLEL, ["--no-such-flag"], "no flag --no-such-flag"),
        # the main process fails while the other one runs its part of the sharded base
        pytest.param(
            *(SHARDED, ["--num-conversations", "6"], "self-written prompts are usable"),
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_errors_are_reported_once_and_end_all_processes(
    launcher: tuple[str, ...], more: list[str], message: str, tmp_path: Path
) -> None:
    model = write_plain_model(tmp_path / "model")
    launched = launch(launcher, "-m", "bita", *tune_args(model, tmp_path / "work", *more))
    _, err = launched.communicate(timeout=120)
    assert launched.returncode != 0
    assert len(re.findall(r"^bita( tune)?: error: ", err, re.MULTILINE)) == 1
    assert err.count(message) == 1


@pytest.mark.thorough
def test_a_killed_and_relaunched_run_gives_the_same_adapter(prompts: Path, tmp_path: Path) -> None:
    model = write_plain_model(tmp_path / "model")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ("--prompts", prompts, "--num-steps", 160, "--batch-size", 2)
    launched = launch(DATA_PARALLEL, "-m", "bita", *tune_args(model, whole, *more))
    _, err = launched.communicate()
    assert launched.returncode == 0, err
    killed = launch(DATA_PARALLEL, "-m", "bita", *tune_args(model, broken, *more))
    while not (broken / "run" / "checkpoint.pt").exists():  # the first one, of step 100
        with suppress(subprocess.TimeoutExpired):
            killed.wait(0.01)
            break
    for process in psutil.Process(killed.pid).children(recursive=True):
        process.kill()
    killed.communicate()
    assert not (broken / "adapter.safetensors").exists()
    again = launch(DATA_PARALLEL, "-m", "bita", *tune_args(model, broken, *more))
    _, err = again.communicate()
    assert again.returncode == 0, err
    assert read_log(broken) == read_log(whole)
    files = [(work / "adapter.safetensors").read_bytes() for work in (broken, whole)]
    assert files[0] == files[1]


@pytest.mark.thorough
def test_each_process_holds_half_of_a_sharded_base(tmp_path: Path) -> None:
    model = write_tiny_model("llama", tmp_path / "model")
    program = tmp_path / "shard_sizes.py"
    program.write_text(SHARD_SIZES)
    launched = launch(SHARDED, program, model, tmp_path)
    _, err = launched.communicate()
    assert launched.returncode == 0, err
    sizes = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert sizes[0][1] == sizes[1][1] == sizes[0][0] + sizes[1][0]
    assert sizes[0][0] == sizes[1][0]


def test_one_process_needs_no_launcher() -> None:
    with join_processes("cpu") as processes:
        assert (processes.device, processes.rank, processes.count) == ("cpu", 0, 1)
        assert processes.is_main
        assert processes.share([4, 5, 6]) == [4, 5, 6]
        assert processes.from_main(2.5) == 2.5
        ones = torch.ones(3)
        processes.add_up([ones])
        assert ones.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("variable", "device", "message"),
    [
        ("ACCELERATE_USE_DEEPSPEED", None, "which tuning does not support"),
        ("FSDP_OFFLOAD_PARAMS", None, "no offloading"),
        ("ACCELERATE_USE_FSDP", "cuda:1", "device cuda:1 would be used by every process"),
    ],
)
def test_unsupported_launcher_settings_are_refused(
    variable: str, device: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ((variable, "true"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(TuningError, match=message), join_processes(device):
        pass
