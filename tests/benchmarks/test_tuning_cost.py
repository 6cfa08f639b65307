"""benchmarks/tuning_cost.py compares methods that compute the same gradients."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import FAMILIES, write_tiny_model

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import training_methods
import tuning_cost
from speed import thorough_but

from bita.adapter import random_adapter
from bita.errors import TuningError
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.torch.base_model import load_base_model
from bita.tuning.mask_model import AdapterParameters, MaskModel
from bita.tuning.settings import TuneSettings
from bita.tuning.training_texts import TrainingText

torch.set_num_threads(1)


def prepare(family: str, directory: Path) -> tuple[MaskModel, AdapterParameters, Any]:
    """Return a float64 model, an adapter, and a batch of texts of different lengths."""
    checkpoint = open_checkpoint(str(write_tiny_model(family, directory)))
    model = MaskModel(load_base_model(checkpoint, "float64"))
    adapter = random_adapter(identify(checkpoint), 3, 5, scale=0.5)
    rng = np.random.default_rng(0)
    texts = [
        TrainingText(tuple(rng.integers(3, 300, size).tolist()), size // 3) for size in (24, 40)
    ]
    settings = TuneSettings(batch_size=2, num_anchors=9)
    (batch,) = tuning_cost.make_batches(model, texts, settings, 1)
    return model, AdapterParameters(adapter), batch


@pytest.mark.parametrize("family", thorough_but(FAMILIES, "llama"))
def test_all_methods_give_the_same_gradients(family: str, tmp_path: Path) -> None:
    model, parameters, batch = prepare(family, tmp_path)
    differences = tuning_cost.check_agreement(model, parameters, batch, 0.8)
    assert len(differences) == 5
    assert max(differences.values()) < 1e-5


def test_methods_that_differ_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text sees the prefix here, as it would in a plain forward pass with a past."""
    model, parameters, batch = prepare("llama", tmp_path)
    right = training_methods.joint_mask
    monkeypatch.setattr(training_methods, "joint_mask", lambda *args: right(*args).clamp(min=0))
    with pytest.raises(TuningError, match="the methods differ"):
        tuning_cost.check_agreement(model, parameters, batch, 0.8)


def test_the_joint_backward_pass_saves_more_memory_for_the_text(tmp_path: Path) -> None:
    model, parameters, batch = prepare("llama", tmp_path)
    ours, theirs, recomputed = (
        tuning_cost.saved_mb(method, model, parameters, batch, 0.8)
        for method in (tuning_cost.two_phases, tuning_cost.joint, tuning_cost.checkpointed)
    )
    assert theirs > 1.2 * ours
    assert recomputed < theirs


@pytest.mark.thorough
def test_the_report_covers_both_layouts_and_all_methods(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = write_tiny_model("qwen3", tmp_path / "model"), tmp_path / "cost.json"
    args = [model, "--batch-size", 2, "--repeats", 2, "--device", "cpu", "--out", out]
    assert tuning_cost.main([str(arg) for arg in args]) == 0
    report = json.loads(out.read_text())
    assert list(report["layouts"]) == ["40 anchors anywhere", "64 consecutive anchors"]
    rows = [layout["mask_rows_per_step"] for layout in report["layouts"].values()]
    assert 230 < rows[0] <= 2 * 40 * 3 < rows[1] <= 2 * 64 * 3
    for layout in report["layouts"].values():
        assert list(layout["methods"]) == list(tuning_cost.METHODS)
        assert layout["methods"]["two phases, kl"]["times_ours"]["p50"] == 1
    assert "joint, ce" in capsys.readouterr().out
