"""Texts whose base states are kept give the same context, and are not read again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import FAMILIES, write_tiny_model

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from bita.export.sources import open_checkpoint
from bita.torch.base_model import load_base_model
from bita.tuning.contexts import Contexts
from bita.tuning.mask_model import AdapterParameters, BaseContext, MaskModel
from bita.tuning.run_files import ADAPTER_FILE, RunFiles
from bita.tuning.settings import TuneSettings
from bita.tuning.start import starting_adapter
from bita.tuning.trainer import Trainer
from bita.tuning.training_texts import TrainingText

torch.set_num_threads(1)


def make_texts(count: int = 3) -> list[TrainingText]:
    rng = np.random.default_rng(1)
    sizes = [(5, 24), (9, 20), (4, 13), (7, 21), (6, 19)][:count]
    return [TrainingText(tuple(rng.integers(4, 300, n).tolist()), p) for p, n in sizes]


def make_model(directory: Path, family: str = "llama", dtype: str = "float32") -> Any:
    checkpoint = open_checkpoint(str(write_tiny_model(family, directory)))
    return checkpoint, MaskModel(load_base_model(checkpoint, dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_texts_give_the_same_context_as_a_batch(family: str, tmp_path: Path) -> None:
    _, model = make_model(tmp_path, family, "float64")
    texts = make_texts()
    expected = Contexts(model, 0).read(texts)
    contexts = Contexts(model, 1 << 30)
    for found in (contexts.read(texts), contexts.read(texts)):
        assert found.first == expected.first == 4
        for row, text in enumerate(texts):
            num_tokens = len(text.token_ids)
            shown = slice(text.num_prompt - 4, num_tokens - 4)
            torch.testing.assert_close(
                found.states[row, shown], expected.states[row, shown], atol=1e-5, rtol=1e-4
            )
            for ours, theirs in zip(found.layers, expected.layers, strict=True):
                for side in (0, 1):
                    torch.testing.assert_close(
                        ours[side][row, :, :num_tokens],
                        theirs[side][row, :, :num_tokens],
                        atol=1e-5,
                        rtol=1e-4,
                    )


def test_the_budget_keeps_the_first_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = make_model(tmp_path)
    texts = make_texts()
    read: list[int] = []

    def read_and_count(ids: Any, first: int) -> BaseContext:
        read.append(len(ids[0]))
        return MaskModel.read(model, ids, first)

    monkeypatch.setattr(model, "read", read_and_count)
    whole = Contexts(model, 1 << 30)
    whole.read(texts)
    whole.read(texts[::-1])
    assert read == [24, 20, 13]
    assert whole.num_kept == 3
    context = MaskModel.read(model, [texts[0].token_ids], 5)
    one = sum(side.nbytes for layer in context.layers for side in layer) + context.states.nbytes
    read.clear()
    tight = Contexts(model, one)
    bits = [tight.read(texts) for _ in range(2)]
    assert read == [24, 20, 13, 20, 13]
    assert tight.num_kept == 1
    assert same_bits(bits[0], bits[1])
    assert same_bits(bits[0], whole.read(texts))


def same_bits(left: BaseContext, right: BaseContext) -> bool:
    sides = [
        pair
        for layers in zip(left.layers, right.layers, strict=True)
        for pair in zip(*layers, strict=True)
    ]
    return torch.equal(left.states, right.states) and all(torch.equal(a, b) for a, b in sides)


def test_the_budget_does_not_change_the_adapter(tmp_path: Path) -> None:
    """Training with a budget for all texts or for almost none gives the same adapter."""
    checkpoint, model = make_model(tmp_path / "model")
    texts = make_texts(5)
    adapters = []
    for name, context_gb in (("all", 1.0), ("one", 1e-5)):
        settings = TuneSettings(num_steps=6, batch_size=2, prefix_length=3, context_gb=context_gb)
        start = starting_adapter(checkpoint, model, texts, settings)
        parameters = AdapterParameters(start)
        Trainer(model, parameters, texts, settings, RunFiles(tmp_path / name, "test")).run()
        adapters.append((tmp_path / name / ADAPTER_FILE).read_bytes())
    assert adapters[0] == adapters[1]


def test_a_run_continues_with_another_budget(tmp_path: Path) -> None:
    """A run may have been killed because it used too much memory."""
    checkpoint, model = make_model(tmp_path / "model")
    texts = make_texts(5)

    def trainer(directory: Path, context_gb: float) -> Trainer:
        settings = TuneSettings(num_steps=6, batch_size=2, prefix_length=3, context_gb=context_gb)
        start = starting_adapter(checkpoint, model, texts, settings)
        files = RunFiles(directory, "test")
        return Trainer(model, AdapterParameters(start), texts, settings, files)

    trainer(tmp_path / "whole", 1.0).run()
    broken = trainer(tmp_path / "broken", 1.0)
    for _ in range(3):
        broken.train_step()
    broken.save()
    resumed = trainer(tmp_path / "broken", 1e-5)
    assert resumed.step == 3
    resumed.run()
    adapters = [(tmp_path / name / ADAPTER_FILE).read_bytes() for name in ("whole", "broken")]
    assert adapters[0] == adapters[1]
