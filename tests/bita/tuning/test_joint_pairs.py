"""Tests of pair scores trained with the masks, and of weighting rows by the rows before them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_engine import write_plain_model
from native_engines import require_library
from tiny_models import write_tiny_model

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from speed import thorough_but

from bita.adapter import Adapter, random_adapter
from bita.continuations import count_continuations
from bita.data.dataset import Conversation, Dataset, DatasetInfo, DatasetWriter
from bita.data.model_texts import ModelTexts
from bita.errors import TuningError
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.pairs import tables_of
from bita.torch.base_model import load_base_model
from bita.torch.reference import greedy
from bita.tuning.joint_pairs import JointPairs
from bita.tuning.losses import reach_weights
from bita.tuning.mask_model import AdapterParameters, MaskModel
from bita.tuning.mask_rows import all_rows
from bita.tuning.row_losses import FlatRows, row_losses
from bita.tuning.settings import TuneSettings
from bita.tuning.start import starting_adapter
from bita.tuning.training_texts import TrainingText
from bita.tuning.tune import DataOptions, RunOptions, self_prompt_options, tune

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("few_bonus_prompts")
RANK = 3


def random_pairs(table: torch.Tensor) -> JointPairs:
    pairs, generator = JointPairs(table, RANK, {}, 0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in pairs.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return pairs


def test_directions_equal_the_adapter_scores_up_to_a_constant_per_row() -> None:
    table = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1
    pairs = random_pairs(table)
    before = torch.tensor([3, 0, 39])
    with torch.no_grad():
        found = pairs.directions(table[before]) @ table.T
    stored = pairs.to_pairs()
    left = table[before].numpy() @ stored["pair_left"] + stored["pair_bias"]
    scores = torch.from_numpy(left @ (table.numpy() @ stored["pair_right"]).T)
    gap = (found - scores).numpy()
    np.testing.assert_allclose(gap, np.broadcast_to(gap[:, :1], gap.shape), atol=1e-3)
    assert np.isfinite(tables_of([table.numpy()], stored).left).all()


def test_training_continues_from_the_scores_of_an_adapter() -> None:
    table = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1
    pairs = random_pairs(table)
    again = JointPairs(table, RANK, pairs.to_pairs(), 5)
    before = torch.tensor([3, 0, 39])
    with torch.no_grad():
        expected = pairs.directions(table[before])
        torch.testing.assert_close(again.directions(table[before]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "granite"])
def test_gradients_in_pieces_equal_those_of_all_rows(family: str, tmp_path: Path) -> None:
    """The logits of some families are products with the embeddings, those of others are not."""
    checkpoint = open_checkpoint(str(write_tiny_model(family, tmp_path)))
    model = MaskModel(load_base_model(checkpoint, "float64"))
    pairs = random_pairs(model.embedding_table())
    generator = torch.Generator().manual_seed(2)
    hidden = identify(checkpoint).hidden_size
    drafts = torch.randn(20, hidden, generator=generator, dtype=torch.float64)
    teacher = torch.randn(20, hidden, generator=generator, dtype=torch.float64)
    before = torch.randint(300, (20,), generator=generator)
    tokens = torch.randint(300, (20,), generator=generator)
    masks = torch.arange(20) % 2
    found = []
    for rows_at_once in (6, 100):
        own = drafts.clone().requires_grad_()
        pairs.zero_grad(set_to_none=True)
        directions = pairs.directions(model.embeddings(before))
        rows = FlatRows(own, teacher, tokens, before, masks, directions)
        results = row_losses(model, rows, "mix", rows_at_once)
        (results.losses * torch.arange(20)).sum().backward()
        found.append(
            [*(r.detach() for r in results), own.grad, *(p.grad for p in pairs.parameters())]
        )
    for pieces, whole in zip(*found, strict=True):
        largest = whole.double().abs().max().item()
        torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5 * largest)
    with torch.no_grad():
        logits = model.output_logits(drafts[None])[0].float()
        logits = logits + pairs.directions(model.embeddings(before)) @ model.embedding_table().T
    by_hand = logits.softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(found[0][1], by_hand, rtol=1e-3, atol=1e-5)


def test_rows_are_weighted_by_the_probability_of_reaching_them() -> None:
    rights = torch.tensor([0.5, 0.25, 1.0, 0.8, 0.1])
    masks = torch.tensor([0, 1, 2, 0, 1])
    weights = reach_weights(rights, masks)
    torch.testing.assert_close(weights, torch.tensor([1, 0.5, 0.125, 1, 0.8]))
    assert reach_weights(torch.zeros(2), torch.tensor([0, 0])).tolist() == [1, 1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_checkpoint(str(write_plain_model(tmp_path_factory.mktemp("plain"))))


@pytest.fixture(scope="module")
def data(plain: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts, rng = ModelTexts.of(plain), np.random.default_rng(0)
    base, folder = load_base_model(plain), tmp_path_factory.mktemp("data")
    info = DatasetInfo(texts.identity, texts.tokenizer_sha256, "test")
    with DatasetWriter(folder, info) as writer:
        for number in range(10):
            prompt = rng.integers(4, 300, 6).tolist()
            answer = tuple(greedy(base, prompt, 20))
            writer.append(number, Conversation(tuple(prompt), answer, "length", "self"))
    return folder


@pytest.mark.parametrize("weights", thorough_but(["confidence", "match", "decay"], "confidence"))
def test_tuning_writes_an_adapter_with_scores(
    plain: Any, data: Path, tmp_path: Path, weights: str
) -> None:
    settings = TuneSettings(
        num_masks=2, prefix_length=2, lora_rank=2, pair_rank=RANK, num_steps=15, weights=weights
    )
    options = RunOptions(tmp_path, tmp_path / "a.safetensors")
    result = tune(plain, DataOptions((data,), num_held_out=2), settings, options)
    adapter = Adapter.load(result.adapter)
    assert (adapter.num_masks, adapter.pair_rank) == (2, RANK)
    assert adapter.pairs["pair_right"].any()
    # tuning continues with fewer masks, and refuses scores of another rank
    options = RunOptions(tmp_path / "b", tmp_path / "b.safetensors", start=adapter)
    fewer = TuneSettings(
        num_masks=1, prefix_length=2, lora_rank=2, pair_rank=RANK, num_steps=2, weights=weights
    )
    result = tune(plain, DataOptions((data,), num_held_out=2), fewer, options)
    assert Adapter.load(result.adapter).num_masks == 1
    options = RunOptions(tmp_path / "c", tmp_path / "c.safetensors", start=adapter)
    other = TuneSettings(num_masks=2, prefix_length=2, lora_rank=2, pair_rank=RANK + 1, num_steps=2)
    with pytest.raises(TuningError, match=r"its pair_rank is 3, not 4"):
        tune(plain, DataOptions((data,), num_held_out=2), other, options)


@pytest.mark.slow
def test_a_better_table_of_the_first_adapter_is_kept(
    plain: Any, data: Path, tmp_path: Path
) -> None:
    settings = TuneSettings(num_masks=1, prefix_length=2, pair_rank=0, num_steps=1)
    options = RunOptions(tmp_path, tmp_path / "a.safetensors")
    own = Adapter.load(tune(plain, DataOptions((data,), num_held_out=2), settings, options).adapter)
    texts = Dataset.load(data, ModelTexts.of(plain).identity, ModelTexts.of(plain).tokenizer_sha256)
    known = [((*each.prompt_ids, *each.response_ids), len(each.prompt_ids)) for each in texts]
    better = count_continuations(known, 1000)  # including the held-out texts
    start = replace(own, continuations=better)

    def values_of(adapter: Adapter) -> list[int]:
        table = adapter.continuations
        return [] if table is None else table.values.tolist()

    def tune_from(name: str, start: Adapter, num_continuations: int = 1000) -> Adapter:
        options = RunOptions(tmp_path / name, tmp_path / f"{name}.safetensors", start=start)
        changed = replace(settings, num_continuations=num_continuations)
        data_options = DataOptions((data,), num_held_out=2)
        return Adapter.load(tune(plain, data_options, changed, options).adapter)

    worse = count_continuations([((1, 2, 3), 1)] * 9, 1000)
    assert values_of(tune_from("b", start)) == values_of(start)
    assert values_of(tune_from("c", replace(own, continuations=worse))) == values_of(own)
    assert values_of(tune_from("d", start, 0)) == []


def test_conversations_of_several_directories_are_combined(
    plain: Any, data: Path, tmp_path: Path
) -> None:
    settings = TuneSettings(num_masks=1, prefix_length=2, pair_rank=0, num_steps=1)
    options = RunOptions(tmp_path, tmp_path / "a.safetensors")
    twice = DataOptions((data, data), num_held_out=2)
    tuned_on = Adapter.load(tune(plain, twice, settings, options).adapter).tuned_on
    assert tuned_on.startswith("18 conversations (conversations), ")


@pytest.mark.slow
def test_an_engine_is_built_once_to_generate_the_data(plain: Any, tmp_path: Path) -> None:
    require_library()
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "Tree number {n}"}}\n' for n in range(12)))
    settings = TuneSettings(num_masks=1, prefix_length=2, num_steps=2)
    data = DataOptions(prompts=prompts, max_new_tokens=12, generator="engine", num_held_out=2)
    built = []
    for out in ("a", "b"):
        options = RunOptions(tmp_path / "run", tmp_path / f"{out}.safetensors")
        tune(plain, data, settings, options)
        built.append((tmp_path / "run" / "engine" / "manifest.json").stat().st_mtime_ns)
    assert built[0] == built[1]  # the second run used the existing engine
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    info = json.loads((tmp_path / "run" / "data" / "info.json").read_text())
    assert info["generator"].startswith("bita engine of")


def test_openings_of_prompts_are_bundled_disabled_or_given(plain: Any, tmp_path: Path) -> None:
    texts = ModelTexts.of(plain)
    base = replace(texts, encoder=replace(texts.encoder, template=None))
    assert len(self_prompt_options(texts, DataOptions(prompt_seed=4)).openings) > 150
    assert self_prompt_options(texts, DataOptions(prompt_seed=4)).seed == 4
    assert self_prompt_options(base, DataOptions()).openings == ()
    assert self_prompt_options(texts, DataOptions(openings="none")).openings == ()
    file = tmp_path / "openings.txt"
    file.write_text("Warum\nWie\n")
    assert self_prompt_options(base, DataOptions(openings=file)).openings == ("Warum", "Wie")
    both = DataOptions(prompts=tmp_path / "prompts.jsonl", openings=file)
    with pytest.raises(TuningError, match="leave one of them out"):
        tune(plain, both, TuneSettings(), RunOptions(tmp_path / "run", tmp_path / "a"))


def test_evaluation_uses_the_pair_scores_of_the_run(plain: Any, data: Path) -> None:
    """The evaluation orders drafts by the scores under training, as a decoder does."""
    model = MaskModel(load_base_model(plain))
    adapter = random_adapter(identify(plain), 1, 0, scale=0.4, seed=4)
    parameters = AdapterParameters(adapter)
    assert parameters.pair_tables(model) is None
    parameters.joint_pairs = random_pairs(model.embedding_table())
    tables = parameters.pair_tables(model)
    assert tables is not None
    assert tables.left.shape == (model.vocab_size, RANK)
    text = TrainingText(tuple(range(4, 24)), 4)
    assert all_rows(4, 20, 1).anchors[0] == 3
    assert starting_adapter(plain, model, [text], TuneSettings(num_masks=1), None).num_masks == 1
