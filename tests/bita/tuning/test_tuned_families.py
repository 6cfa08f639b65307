"""Models of every family are tuned and exported, and their drafts are accepted as predicted."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from speed import thorough_but
from tiny_models import write_tiny_model

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from bita.adapter import Adapter
from bita.calibration.verify import verify
from bita.data.dataset import Conversation, Dataset
from bita.data.model_texts import ModelTexts
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
from bita.runtime.session import Session
from bita.torch.base_model import load_base_model
from bita.tree import Tree
from bita.tuning.evaluation import DraftQuality, evaluate
from bita.tuning.mask_model import AdapterParameters, MaskModel
from bita.tuning.settings import TuneSettings
from bita.tuning.training_texts import TrainingText
from bita.tuning.tune import DataOptions, RunOptions, tune
from bita.tuning.tuning_base import load_tuning_base

torch.set_num_threads(1)
FAMILIES = ("llama", "mistral", "qwen3", "smollm3", "phi3", "gemma2", "gemma3_text", "granite")
NEW_TOKENS = 20  # longer than the sliding windows of 16
SETTINGS = TuneSettings(
    num_steps=40, num_anchors=12, prefix_length=4, lora_rank=2, mask_rate=3e-2, prefix_rate=3e-2
)


@dataclass(frozen=True)
class TunedModel:
    """A tiny model after `tune`, with the base that was loaded and all conversations."""

    checkpoint: Any
    folder: Path
    base: Any
    adapter: Adapter
    answers: list[Conversation]

    def quality(self) -> DraftQuality:
        """Evaluate the tuned adapter on all conversations."""
        texts = [
            TrainingText((*c.prompt_ids, *c.response_ids), len(c.prompt_ids)) for c in self.answers
        ]
        return evaluate(MaskModel(self.base), AdapterParameters(self.adapter), texts)

    def losses(self) -> list[float]:
        log = (self.folder / "work" / "run" / "log.jsonl").read_text().splitlines()
        return [entry["loss"] for entry in map(json.loads, log) if "loss" in entry]


@pytest.fixture(scope="module", params=thorough_but(FAMILIES, "llama"))
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TunedModel:
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = open_checkpoint(str(write_tiny_model(request.param, folder / "model")))
    prompts, out = folder / "prompts.jsonl", folder / "adapter.safetensors"
    prompts.write_text("".join(json.dumps({"prompt": f"Tree {n}"}) + "\n" for n in range(8)))
    data = DataOptions(prompts=prompts, max_new_tokens=NEW_TOKENS)
    bases: list[Any] = []

    def load(*args: Any) -> Any:
        bases.append(load_tuning_base(*args))
        return bases[-1]

    with pytest.MonkeyPatch.context() as patch:  # to keep the model that `tune` loads
        patch.setattr("bita.tuning.tune.load_tuning_base", load)
        tune(checkpoint, data, SETTINGS, RunOptions(folder / "work", out))
    about = ModelTexts.of(checkpoint)
    answers = Dataset.load(folder / "work" / "data", about.identity, about.tokenizer_sha256)
    (base,) = bases
    return TunedModel(checkpoint, folder, base, Adapter.load(out), list(answers))


def test_the_loss_falls(tuned: TunedModel) -> None:
    losses = tuned.losses()
    assert np.mean(losses[-5:]) < 0.92 * np.mean(losses[:5])


def test_the_base_does_not_change(tuned: TunedModel) -> None:
    weights, fresh = tuned.base.state_dict(), load_base_model(tuned.checkpoint).state_dict()
    assert weights.keys() == fresh.keys()
    assert all(torch.equal(weight, fresh[name]) for name, weight in weights.items())
    assert all(weight.grad is None for weight in tuned.base.parameters())


def test_the_engine_accepts_as_many_drafts_as_the_evaluation_predicts(tuned: TunedModel) -> None:
    """The text is lossless in both modes, and the accepted drafts equal those of the replay."""
    quality = tuned.quality()
    tree = quality.best_tree(64)
    spine = Tree.from_paths([(1,) * depth for depth in range(1, 1 + tree.spine_length)])
    expected = {"tree": quality.tokens_per_step(tree), "exact": quality.tokens_per_step(spine)}
    assert expected["tree"] > 1.05
    engine = tuned.folder / "engine"
    options = BuildOptions(precision="fp32", capacity=128, tree=tree, mode="tree")
    build_engine(check_build(tuned.checkpoint, tuned.adapter, engine, options))
    session = Session.open(engine, num_threads=1)
    prompts = [list(answer.prompt_ids) for answer in tuned.answers]
    for mode, tokens_per_step in expected.items():
        own, random = verify(session.using(mode=mode), prompts, NEW_TOKENS)
        for comparison in (own, random):
            assert comparison.num_identical == comparison.num_prompts == len(prompts)
            assert comparison.num_tokens == sum(len(a.response_ids) for a in tuned.answers)
        assert own.tokens_per_step == pytest.approx(tokens_per_step)
        assert mode == "exact" or own.tokens_per_step > random.tokens_per_step
