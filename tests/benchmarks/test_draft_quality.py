"""The figures of benchmarks/draft_quality.py equal the engine's own step counts."""

import json
from pathlib import Path
from typing import Any

import pytest
from make_tiny_engine import CONFIG, write_plain_model

pytest.importorskip("torch")
pytest.importorskip("transformers")

import draft_quality
import torch

from bita.adapter import Adapter, untuned_adapter
from bita.data.prompts import read_prompts
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
from bita.runtime.session import Session
from bita.tree import Tree
from bita.tuning.settings import TuneSettings
from bita.tuning.tune import DataOptions, RunOptions, tune

pytestmark = pytest.mark.thorough

torch.set_num_threads(1)
NUM_PROMPTS, NEW_TOKENS = 24, 40
EOS_ID = 223  # about half of this model's answers reach it
SETTINGS = TuneSettings(
    num_steps=60, num_anchors=20, prefix_length=4, mask_rate=3e-2, prefix_rate=3e-2
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model whose answers can be learnt, prompts in MT-Bench's form, and an adapter."""
    folder = tmp_path_factory.mktemp("quality")
    model = write_plain_model(folder / "model", scale=0.15)
    config = {**CONFIG, "eos_token_id": EOS_ID}
    (model / "config.json").write_text(json.dumps(config))
    lines = [{"turns": [f"Prompt {n}: {'tree ' * (n % 5)}", "more"]} for n in range(NUM_PROMPTS)]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = DataOptions(prompts=prompts, max_new_tokens=NEW_TOKENS)
    checkpoint = open_checkpoint(str(model))
    options = RunOptions(folder / "tuning", folder / "a.safetensors")
    tune(checkpoint, data, SETTINGS, options)
    return folder


def run(folder: Path, *more: object) -> dict[str, Any]:
    fixed = [folder / "model", "--prompts", folder / "prompts.jsonl", "--cache", folder / "cache"]
    out = ["--max-new-tokens", NEW_TOKENS, "--device", "cpu", "--out", folder / "results.json"]
    assert draft_quality.main([str(arg) for arg in (*fixed, *out, *more)]) == 0
    report: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return report


def test_every_figure_equals_the_engine_counters(folder: Path) -> None:
    """Texts end by EOS and by the limit; two adapters are tried with every tree of the report."""
    names = ["untuned", str(folder / "a.safetensors")]
    report = run(folder, "--adapters", *names, "--prefix-length", 4)
    assert 0 < report["num_ended_by_eos"] < NUM_PROMPTS
    assert "themselves" in report["trees_chosen_on"]
    checkpoint = open_checkpoint(str(folder / "model"))
    options = BuildOptions(precision="fp32", capacity=160)
    build_engine(check_build(checkpoint, Adapter.load(names[1]), folder / "engine", options))
    session = Session.open(folder / "engine", num_threads=1)
    prompts = read_prompts(folder / "prompts.jsonl")
    for result in report["adapters"]:
        adapter = None
        if result["adapter"] == "untuned":
            adapter = untuned_adapter(checkpoint, 3, 4)
        for name, expected in result["tokens_per_step"].items():
            tree = Tree.from_paths(result["trees"][name], 3)
            decoding = session.using(tree=tree, adapter=adapter, mode="tree")
            for prompt in prompts:
                decoding.generate(prompt, NEW_TOKENS)
            assert decoding.stats.num_tokens == report["new_tokens"] - NUM_PROMPTS
            assert decoding.stats.tokens_per_step == pytest.approx(expected), name
            low, high = result["tokens_per_step_95"][name]
            assert low <= expected <= high
    best = report["adapters"][1]["tokens_per_step"]
    assert best["best_64_rows"] > best["best_32_rows"] > best["chain"] > 1


def test_cached_answers_are_continued_and_reused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(folder)
    other = folder / "other"
    run(folder, "--cache", other, "--limit", 16)
    continued = run(folder, "--cache", other)
    assert continued["adapters"][0]["accuracy"] == whole["adapters"][0]["accuracy"]

    def fail(*_: object) -> None:
        raise AssertionError("the answers are in the cache already")

    monkeypatch.setattr("bita.data.generators.decode_batch", fail)
    few = run(folder, "--limit", 5)
    assert few["num_texts"] == 5


def test_trees_are_chosen_on_other_text(folder: Path) -> None:
    own = run(folder, "--adapters", folder / "a.safetensors")
    (data,) = (folder / "cache").iterdir()
    other = run(folder, "--adapters", folder / "a.safetensors", "--trees-from", data)
    assert other["trees_chosen_on"] == f"4 held-out conversations of {data.name}"
    left, right = (report["adapters"][0] for report in (own, other))
    assert left["trees"]["best_64_rows"] != right["trees"]["best_64_rows"]
    assert left["tokens_per_step"]["best_64_rows"] > right["tokens_per_step"]["best_64_rows"]
    assert left["accuracy"] == right["accuracy"]


def test_a_missing_prompt_file_is_reported_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [str(folder / "model"), "--prompts", "none.jsonl", "--out", str(folder / "x.json")]
    assert draft_quality.main(args) == 1
    assert capsys.readouterr().err.startswith("draft_quality: cannot read prompts from none.jsonl")
