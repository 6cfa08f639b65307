"""Tuning on a 4-bit base lowers the loss, keeps the base, and has the right gradient."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_tiny_model

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")

import bitsandbytes
import torch

from bita.adapter import random_adapter
from bita.data.generators import TransformersGenerator
from bita.errors import MissingExtraError, TuningError
from bita.export.sources import open_checkpoint
from bita.extras import install_command
from bita.identity import identify
from bita.torch.reference import greedy
from bita.tuning.mask_model import AdapterParameters, MaskModel
from bita.tuning.mask_rows import all_rows
from bita.tuning.run_files import LOG_FILE, RunFiles
from bita.tuning.settings import TuneSettings
from bita.tuning.start import starting_adapter
from bita.tuning.trainer import Trainer
from bita.tuning.training_texts import TrainingText
from bita.tuning.tuning_base import load_4bit_base

torch.set_num_threads(1)


@pytest.mark.parametrize("family", ["qwen3", "phi3"])
def test_tuning_lowers_the_loss_and_keeps_the_base(family: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_tiny_model(family, tmp_path / "model")))
    base, rng = load_4bit_base(checkpoint, "float32", "cpu"), np.random.default_rng(0)
    prompts = [rng.integers(4, 300, 6).tolist() for _ in range(3)]
    texts = [TrainingText((*p, *greedy(base, p, 24)), len(p)) for p in prompts]
    settings = TuneSettings(num_steps=50, batch_size=2, num_anchors=8, prefix_length=4)
    model = MaskModel(base)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    adapter = starting_adapter(checkpoint, model, texts, settings)
    files = RunFiles(tmp_path / "run", "test")
    trainer = Trainer(model, AdapterParameters(adapter), texts, settings, files)
    trainer.run()
    lines = (tmp_path / "run" / LOG_FILE).read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert np.mean(losses[-8:]) < 0.95 * np.mean(losses[:8])
    after = base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {w.dtype for n, w in base.named_parameters() if n.endswith("proj.weight")} == {
        torch.uint8
    }


def test_gradients_equal_those_of_the_dequantized_base(tmp_path: Path) -> None:
    """Gradients through 4-bit layers are compared with those through dequantized linear layers."""
    checkpoint = open_checkpoint(str(write_tiny_model("phi3", tmp_path)))
    adapter = random_adapter(identify(checkpoint), 3, 2, scale=0.4)
    token_ids = np.random.default_rng(0).integers(4, 300, 20).tolist()
    rows = all_rows(4, len(token_ids), 3)
    base = load_4bit_base(checkpoint, "float32", "cpu")
    results = []
    for _ in range(2):
        parameters, model = AdapterParameters(adapter), MaskModel(base)
        context = model.read([token_ids], 4)
        model.mask_logits(parameters, context, [rows]).square().mean().backward()
        results.append([context.states, *(p.grad for p in parameters.parameters())])
        dequantize(base)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def dequantize(base: torch.nn.Module) -> None:
    for name, module in list(base.named_modules()):
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = module.weight
            plain = torch.nn.Linear(module.in_features, module.out_features, bias=False)
            plain.weight.data = bitsandbytes.functional.dequantize_4bit(
                weight.data, weight.quant_state
            )
            owner, _, own_name = name.rpartition(".")
            setattr(base.get_submodule(owner), own_name, plain.requires_grad_(False))


def test_data_record_that_a_4_bit_base_generated_them(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_tiny_model("llama", tmp_path)))
    generator = TransformersGenerator(load_4bit_base(checkpoint, "float32", "cpu"), [1])
    assert generator.options["weights"] == "4 bit"


def test_errors_name_the_extra_and_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(str(write_tiny_model("llama", tmp_path)))
    with pytest.raises(TuningError, match="bitsandbytes cannot quantize on nowhere"):
        load_4bit_base(checkpoint, "float32", "nowhere")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=re.escape(install_command("bnb"))):
        load_4bit_base(checkpoint, "float32", "cpu")
