"""Mask rows train as in the joint forward pass, resume exactly, learn, and keep the base frozen."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_engine import write_plain_model
from speed import slow_but, thorough_but
from tiny_models import FAMILIES, write_tiny_model

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from bita.adapter import Adapter, random_adapter
from bita.errors import TuningError
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.lora import site_sizes, starting_lora
from bita.torch.base_model import load_base_model
from bita.torch.reference import ReferenceDecoder, greedy
from bita.tree import Tree
from bita.tuning.evaluation import DraftQuality, evaluate
from bita.tuning.losses import decayed_mean, draft_losses, sums_by_mask
from bita.tuning.mask_model import AdapterParameters, MaskModel
from bita.tuning.mask_rows import all_rows, choose_rows, rows_after
from bita.tuning.row_losses import flatten, row_losses
from bita.tuning.run_files import ADAPTER_FILE, CHECKPOINT_FILE, LOG_FILE, RunFiles
from bita.tuning.settings import TuneSettings
from bita.tuning.start import starting_adapter
from bita.tuning.trainer import Trainer
from bita.tuning.training_texts import TrainingText, batch_of, cut_text, split_held_out, usable

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_checkpoint(str(write_plain_model(tmp_path_factory.mktemp("plain"))))


@pytest.fixture(scope="module")
def texts(plain: Any) -> list[TrainingText]:
    """Return greedy answers of the plain model to random prompts."""
    base, rng = load_base_model(plain), np.random.default_rng(0)
    prompts = [rng.integers(4, 300, 6).tolist() for _ in range(6)]
    return [TrainingText((*p, *greedy(base, p, 24)), len(p)) for p in prompts]


@pytest.mark.parametrize("family", slow_but(FAMILIES, "llama", "gemma3_text"))
@pytest.mark.parametrize(("prefix_length", "rank"), [(0, 0), (5, 0), (5, 3)])
def test_two_phases_equal_the_joint_forward(
    family: str, prefix_length: int, rank: int, tmp_path: Path
) -> None:
    """All groups at once against the cache equal one joint forward pass for each group."""
    checkpoint = open_checkpoint(str(write_tiny_model(family, tmp_path)))
    base = load_base_model(checkpoint, dtype="float64")
    identity = identify(checkpoint)
    lora = starting_lora(site_sizes(checkpoint), identity.num_layers, rank, seed=0)
    adapter = random_adapter(identity, 3, prefix_length, scale=0.5, lora_like=lora)
    text = tuple(np.random.default_rng(3).integers(3, 300, 30).tolist())
    other = text[::-1][:17]  # a shorter text in the same batch
    model = MaskModel(base)
    context = model.read([other, text], first=4)
    rows = [all_rows(5, len(other), 3), all_rows(5, len(text), 3)]
    with torch.no_grad():
        found = model.mask_logits(AdapterParameters(adapter), context, rows)[1]
        taught = model.output_logits(context.states)
    reference = ReferenceDecoder(base, adapter)
    tree = Tree.root_only(3)
    for anchor in (4, 11, 27):
        nodes, masks = reference.step_outputs(text[: anchor + 1], tree, [])
        own = rows[1].anchors == anchor
        torch.testing.assert_close(found[: len(own)][own], masks[: own.sum()], atol=1e-5, rtol=0)
        torch.testing.assert_close(taught[1, anchor - 4], nodes[0], atol=1e-5, rtol=0)


def test_rows_have_the_positions_and_labels_of_decoding() -> None:
    rows = rows_after(np.array([3, 7]), np.array([3, 1]))
    assert rows.anchors.tolist() == [3, 3, 3, 7]
    assert rows.positions.tolist() == [4, 5, 6, 8]
    assert rows.labels.tolist() == [5, 6, 7, 9]


@pytest.mark.parametrize("anchors", ["random", "consecutive"])
@pytest.mark.parametrize("num_tokens", [7, 8, 30, 200])
def test_anchors_are_in_the_response_and_have_labels(anchors: str, num_tokens: int) -> None:
    settings = TuneSettings(num_anchors=20, anchors=anchors)
    rows = choose_rows(5, num_tokens, settings, np.random.default_rng(0))
    assert rows.anchors.min() >= 4
    assert rows.labels.max() <= num_tokens - 1
    distinct = np.unique(rows.anchors)
    assert len(distinct) == min(20, num_tokens - 2 - 4)
    if anchors == "consecutive":
        assert (np.diff(distinct) == 1).all()


def test_far_masks_are_dropped_from_the_end() -> None:
    settings = TuneSettings(num_masks=4, num_anchors=500, keep_far=0.5)
    rows = choose_rows(1, 1000, settings, np.random.default_rng(0))
    counts = np.bincount(rows.masks)
    np.testing.assert_allclose(counts / counts[0], [1, 0.5, 0.25, 0.125], atol=0.06)
    for anchor in np.unique(rows.anchors)[:50]:
        masks = rows.masks[rows.anchors == anchor]
        assert masks.tolist() == list(range(len(masks)))


def test_losses_equal_a_computation_by_hand() -> None:
    teacher = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    drafts = torch.log(torch.tensor([[0.25, 0.5, 0.25]]))
    tokens = torch.tensor([0])
    kl = 0.5 * np.log(2) + 0.25 * np.log(0.5)
    assert draft_losses(drafts, teacher, tokens, "kl").item() == pytest.approx(kl)
    assert draft_losses(drafts, teacher, tokens, "ce").item() == pytest.approx(np.log(4))
    mix = draft_losses(drafts, teacher, tokens, "mix").item()
    assert mix == pytest.approx((kl + np.log(4)) / 2)
    losses, masks = torch.tensor([1.0, 2.0, 4.0, 3.0]), torch.tensor([0, 1, 2, 0])
    sums = sums_by_mask(losses, masks, 3)
    assert sums.tolist() == [4, 2, 4]
    mean = decayed_mean(sums, torch.tensor([2, 1, 1]), 0.5).item()
    assert mean == pytest.approx((4 + 1 + 1) / 2.75)


@pytest.mark.parametrize("loss", ["kl", "ce", "mix"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])  # plain, capped, scaled logits
def test_losses_in_pieces_equal_those_of_all_rows(family: str, loss: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_tiny_model(family, tmp_path)))
    model, rng = MaskModel(load_base_model(checkpoint, "float64")), np.random.default_rng(0)
    batch = [TrainingText(tuple(rng.integers(4, 300, n).tolist()), 5) for n in (24, 17)]
    rows = [all_rows(5, len(text.token_ids), 3) for text in batch]
    parameters = AdapterParameters(random_adapter(identify(checkpoint), 3, 2, scale=0.5))
    results = []
    for rows_at_once in (7, 1000):
        parameters.zero_grad(set_to_none=True)
        context = model.read([text.token_ids for text in batch], 5)
        states = model.mask_states(parameters, context, rows)
        flat = flatten(batch, rows, context, states)
        losses = row_losses(model, flat, loss, rows_at_once).losses
        (losses * torch.arange(len(losses))).sum().backward()
        results.append([losses.detach(), *(p.grad for p in parameters.parameters() if p.numel())])
    for pieces, whole in zip(*results, strict=True):
        largest = whole.abs().max().item()
        assert largest > 0
        torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5 * largest)


def make_trainer(
    checkpoint: Any, texts: list[TrainingText], directory: Path, **changes: Any
) -> Trainer:
    options = {"num_steps": 12, "batch_size": 2, "num_anchors": 8, "prefix_length": 4}
    settings = TuneSettings(**{**options, **changes})
    model = MaskModel(load_base_model(checkpoint))
    adapter = starting_adapter(checkpoint, model, texts, settings)
    files = RunFiles(directory, "test")
    return Trainer(model, AdapterParameters(adapter), texts, settings, files)


def read_log(directory: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (directory / LOG_FILE).read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in entries]


@pytest.mark.parametrize(
    "changes", [{}, {"prefix_length": 0}, {"dropout": 0.3, "loss": "mix"}, {"lora_rank": 2}]
)
def test_a_killed_and_resumed_run_gives_the_same_adapter(
    plain: Any, texts: list[TrainingText], tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    make_trainer(plain, texts, whole, **changes).run(checkpoint_every=4)

    class KilledError(Exception):
        pass

    def kill(report: Any) -> None:
        if report.step == 6:
            raise KilledError

    with pytest.raises(KilledError):
        make_trainer(plain, texts, broken, **changes).run(kill, checkpoint_every=4)
    with (broken / LOG_FILE).open("a") as log:
        log.write('{"step": 7, "lo')  # a line cut short
    resumed = make_trainer(plain, texts, broken, **changes)
    assert resumed.step == 4
    resumed.run(checkpoint_every=4)
    assert read_log(broken) == read_log(whole)
    assert (broken / ADAPTER_FILE).read_bytes() == (whole / ADAPTER_FILE).read_bytes()


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(
    "family", thorough_but(["llama", "qwen3", "phi3", "gemma3_text", "granite"], "llama")
)
def test_tuning_lowers_the_loss_and_keeps_the_base(family: str, rank: int, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_tiny_model(family, tmp_path / "model")))
    base, rng = load_base_model(checkpoint), np.random.default_rng(0)
    prompts = [rng.integers(4, 300, 6).tolist() for _ in range(3)]
    texts = [TrainingText((*p, *greedy(base, p, 24)), len(p)) for p in prompts]
    changes = {"num_steps": 100, "warmup_steps": 2, "batch_size": 3, "lora_rank": rank}
    trainer = make_trainer(checkpoint, texts, tmp_path / "run", **changes)
    before = {name: weight.clone() for name, weight in trainer.model.base.state_dict().items()}
    trainer.run()
    losses = [np.mean(entry["mask_losses"]) for entry in read_log(tmp_path / "run")]
    assert np.mean(losses[-12:]) < 0.95 * np.mean(losses[:4])
    for name, weight in trainer.model.base.state_dict().items():
        assert torch.equal(weight, before[name])
    tuned = Adapter.load(tmp_path / "run" / ADAPTER_FILE)
    assert (tuned.num_masks, tuned.prefix_length, tuned.lora_rank) == (3, 4, rank)
    assert tuned.tuned_on == "test"
    assert all(tuned.lora[name].any() for name in tuned.lora)  # "up" starts at zero


def test_the_prefix_starts_from_activations(plain: Any, texts: list[TrainingText]) -> None:
    model = MaskModel(load_base_model(plain))
    settings = TuneSettings(prefix_length=4)
    adapter = starting_adapter(plain, model, texts, settings)
    context = model.read([texts[0].token_ids], 0)
    np.testing.assert_allclose(adapter.prefix_keys[1], context.layers[1][0][0, :, :4], atol=1e-5)
    np.testing.assert_allclose(adapter.prefix_values[0], context.layers[0][1][0, :, :4], atol=1e-5)
    with pytest.raises(TuningError, match="no text has 99 tokens"):
        starting_adapter(plain, model, texts, TuneSettings(prefix_length=99))


def test_masks_start_at_the_mean_or_random(plain: Any, texts: list[TrainingText]) -> None:
    model = MaskModel(load_base_model(plain))
    mean, normal, again = (
        starting_adapter(plain, model, texts, TuneSettings(mask_start=start)).mask_embeddings
        for start in ("mean", "normal", "normal")
    )
    np.testing.assert_allclose(mean[2], model.embedding_table().mean(0), atol=1e-6)
    np.testing.assert_array_equal(normal, again)
    assert not np.array_equal(normal[0], normal[1])
    assert normal.std() == pytest.approx(0.02, rel=0.3)


def test_replayed_steps_equal_decoding(plain: Any, texts: list[TrainingText]) -> None:
    """The evaluation's tokens_per_step equals the reference decoder's on the same texts."""
    base = load_base_model(plain)
    adapter = random_adapter(identify(plain), 3, 2, scale=0.4, seed=4)
    quality = evaluate(MaskModel(base), AdapterParameters(adapter), texts)
    tree = Tree.from_paths([(1,), (2,), (3,), (4,), (1, 1), (2, 1), (1, 2), (1, 1, 1)], 3)
    decoder = ReferenceDecoder(base, adapter)
    emitted = steps = 0
    for text in texts:
        prompt, response = text.token_ids[: text.num_prompt], text.token_ids[text.num_prompt :]
        result = decoder.generate(prompt, tree, len(response))
        assert result.token_ids == response
        # the reference's first step is the prefill, whose tree is empty
        emitted += sum(result.tokens_per_step[1:])
        steps += result.num_steps - 1
    assert quality.tokens_per_step(tree) == pytest.approx(emitted / steps)
    assert emitted > steps


def test_quality_equals_a_computation_by_hand() -> None:
    table = np.array([[1, 1, 0], [1, 2, 1], [3, 1, 1], [0, 1, 1]])
    quality = DraftQuality([table])
    assert quality.accuracy(0, 1) == 0.5
    assert quality.accuracy(0, 5) == 0.75
    assert quality.conditional(1, 1) == 0.5
    assert quality.conditional(2, 1) == 0.0
    # chain: anchor 0 accepts two drafts, anchor 3 accepts none: 4 tokens in 2 steps
    assert quality.tokens_per_step(Tree.chain(3)) == 2.0
    assert quality.tokens_per_step(Tree.root_only()) == 1.0
    assert quality.best_tree(16).paths == ((), (1,), (1, 1), (3,))
    assert quality.report()["tokens_per_step"]["chain"] == 2.0
    other = {"root": Tree.root_only()}
    assert quality.report(other)["tokens_per_step"] == {"root": 1.0}


def test_drafts_right_to_the_end_emit_no_further_token() -> None:
    """The prefill gives one of three response tokens, and one step the other two, no bonus."""
    quality = DraftQuality([np.array([[1, 1, 0], [1, 0, 0]])])
    assert quality.num_steps(Tree.chain(3)) == [1]
    assert quality.tokens_per_step(Tree.chain(3)) == 2.0


def test_ranks_do_not_depend_on_the_pieces(
    plain: Any, texts: list[TrainingText], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MaskModel(load_base_model(plain))
    parameters = AdapterParameters(random_adapter(identify(plain), 3, 2, scale=0.4, seed=4))
    whole = evaluate(model, parameters, texts)
    monkeypatch.setattr("bita.tuning.evaluation.ROWS_AT_ONCE", 15)
    pieces = evaluate(model, parameters, texts)
    for left, right in zip(whole.tables, pieces.tables, strict=True):
        np.testing.assert_array_equal(left, right)
    assert len(np.unique(np.concatenate(whole.tables))) > 5


def test_batches_visit_every_text_once_per_epoch(texts: list[TrainingText]) -> None:
    seen = [text for step in range(3) for text in batch_of(texts, step, 2, seed=5)]
    assert sorted(seen, key=str) == sorted(texts, key=str)
    again = [text for step in range(3, 6) for text in batch_of(texts, step, 2, seed=5)]
    assert seen != again


def test_texts_are_cut_checked_and_split() -> None:
    text = cut_text(range(10), range(100, 104), 8)
    assert text.token_ids == (6, 7, 8, 9, 100, 101, 102, 103)
    assert text.num_prompt == 4
    assert cut_text(range(3), range(100, 120), 8).token_ids == (0, 1, 2, *range(100, 105))
    with pytest.raises(TuningError, match="none of 1 conversations has a response"):
        usable([TrainingText((1, 2, 3), 2)])
    many = [TrainingText((index, 2, 3), 1) for index in range(20)]
    train, held_out = split_held_out(many, 100, seed=0)
    assert (len(train), len(held_out)) == (16, 4)
    assert not set(train) & set(held_out)


def test_a_run_that_diverges_stops_before_the_update(
    plain: Any, texts: list[TrainingText], tmp_path: Path
) -> None:
    trainer = make_trainer(plain, texts, tmp_path)
    with torch.no_grad():
        trainer.parameters.mask_embeddings.fill_(float("nan"))
    before = trainer.parameters.prefix_keys.clone()
    with pytest.raises(TuningError, match="loss of step 0 is nan; lower the learning"):
        trainer.run()
    assert torch.equal(trainer.parameters.prefix_keys, before)


def test_broken_and_foreign_checkpoints_are_refused(
    plain: Any, texts: list[TrainingText], tmp_path: Path
) -> None:
    make_trainer(plain, texts, tmp_path / "a").run()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(TuningError, match=r"other settings \(loss, seed\)"):
        make_trainer(plain, texts, tmp_path / "a", seed=1, loss="ce")
    (tmp_path / "b" / CHECKPOINT_FILE).write_bytes(b"junk")
    with pytest.raises(TuningError, match="cannot be read"):
        make_trainer(plain, texts, tmp_path / "b")


def test_settings_list_all_faults() -> None:
    with pytest.raises(TuningError, match=r"(?s)4 faults.*num_masks is 0.*decay is 2.*loss is 'x'"):
        TuneSettings(num_masks=0, decay=2, dropout=1, loss="x")
