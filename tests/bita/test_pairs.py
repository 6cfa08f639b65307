"""Tests of pair scores: the order of drafts, engines with pair scores, and their training."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from make_tiny_engine import write_plain_model

from bita.adapter import Adapter, random_adapter
from bita.engine import PAIRS_FILE
from bita.errors import AdapterError, EngineError
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.checkpoint import Checkpoint
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.pairs import PAIR_TENSORS, PairTables, tables_of
from bita.runtime.session import Session
from bita.tree import Tree

TREE = Tree.from_paths([(1,), (1, 1), (1, 1, 1), (2,), (2, 1), (1, 2), (3,), (2, 1, 1)], 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(write_plain_model(tmp_path_factory.mktemp("plain"))))


@pytest.fixture(scope="module")
def adapter(checkpoint: Checkpoint) -> Adapter:
    """Return a random adapter whose pair scores are as large as the logits."""
    rng = np.random.default_rng(0)
    shapes = {"pair_left": (32, 5), "pair_bias": (5,), "pair_right": (32, 5)}
    pairs = {name: rng.normal(0, 0.8, shape).astype(np.float32) for name, shape in shapes.items()}
    return replace(random_adapter(identify(checkpoint), 3, 2, scale=0.4, seed=4), pairs=pairs)


@pytest.fixture(scope="module")
def session(
    checkpoint: Checkpoint, adapter: Adapter, tmp_path_factory: pytest.TempPathFactory
) -> Session:
    out = tmp_path_factory.mktemp("engines") / "pairs"
    options = BuildOptions(precision="fp32", tree=TREE, mode="tree")
    build_engine(check_build(checkpoint, adapter, out, options))
    return Session.open(out, num_threads=1)


def prompt(seed: int, length: int = 12) -> list[int]:
    return np.random.default_rng(seed).integers(4, 300, length).tolist()


def test_children_are_ordered_by_their_parent() -> None:
    tables = PairTables(np.array([[1.0], [-1.0], [0.0]]), np.array([[2.0], [0.0], [-3.0]]))
    parents, candidates = np.array([0, 1, 2]), np.array([2, 0, 1])
    logits = np.array([1.0, 0.5, 0.5], np.float32)
    ordered = tables.order(parents, candidates, logits)
    # scores after 0: -2, 2.5, 0.5; after 1: 4, -1.5, 0.5; after 2: the logits, ties in given order
    assert ordered.tolist() == [[0, 1, 2], [2, 1, 0], [2, 0, 1]]


def test_the_bias_is_folded_into_the_tables(adapter: Adapter) -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(size=(7, 32)).astype(np.float32)
    tables = tables_of([table[:3], table[3:]], adapter.pairs)
    left, bias, right = (adapter.pairs[name] for name in PAIR_TENSORS)
    np.testing.assert_allclose(tables.left, table @ left + bias, atol=0.02)
    np.testing.assert_allclose(tables.right, table @ right, atol=0.02)


def test_load_returns_the_saved_pair_scores(adapter: Adapter, tmp_path: Path) -> None:
    adapter.save(tmp_path / "a.safetensors")
    loaded = Adapter.load(tmp_path / "a.safetensors")
    assert loaded.pair_rank == 5
    for name in PAIR_TENSORS:
        np.testing.assert_array_equal(loaded.pairs[name], adapter.pairs[name])


def test_shapes_that_do_not_fit_are_listed(adapter: Adapter) -> None:
    short = {**adapter.pairs, "pair_right": adapter.pairs["pair_right"][:, 1:]}
    with pytest.raises(AdapterError, match=r"pair_right is \[32, 4\], not \[32, 5\]"):
        replace(adapter, pairs=short)
    with pytest.raises(AdapterError, match="tensor 'pair_bias' is missing"):
        replace(adapter, pairs={"pair_left": short["pair_left"], "pair_right": short["pair_right"]})


@pytest.mark.parametrize("seed", range(4))
def test_the_text_equals_plain_decoding(session: Session, seed: int) -> None:
    ar = session.using(tree=Tree.root_only())
    expected = ar.generate(prompt(seed), 60, ignore_eos=True).token_ids
    for mode in ("exact", "tree"):
        found = session.using(mode=mode).generate(prompt(seed), 60, ignore_eos=True)
        assert found.token_ids == expected


@pytest.mark.slow
def test_engine_and_reference_draft_the_same(
    session: Session, adapter: Adapter, checkpoint: Checkpoint
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from bita.torch.base_model import load_base_model
    from bita.torch.reference import ReferenceDecoder

    reference = ReferenceDecoder(load_base_model(checkpoint), adapter)
    plain = ReferenceDecoder(reference.model, replace(adapter, pairs={}))
    differ = 0
    for seed in range(6):
        engine = session.using()
        answer = engine.generate(prompt(seed), 40, ignore_eos=True)
        result = reference.generate(prompt(seed), TREE, 40)
        assert answer.token_ids == list(result.token_ids)
        # the reference's first step is the prefill
        assert engine.stats.num_steps == result.num_steps - 1
        differ += plain.generate(prompt(seed), TREE, 40).num_steps != result.num_steps
    assert differ  # otherwise the scores have no effect here


def test_replay_counts_the_same_steps_as_the_engine(
    session: Session, adapter: Adapter, checkpoint: Checkpoint
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from bita.torch.base_model import load_base_model
    from bita.tuning.evaluation import evaluate
    from bita.tuning.mask_model import AdapterParameters, MaskModel
    from bita.tuning.training_texts import TrainingText

    engine = session.using()
    texts = []
    for seed in range(6):
        answer = engine.generate(prompt(seed), 40, ignore_eos=True)
        texts.append(TrainingText((*prompt(seed), *answer.token_ids), 12))
    model = MaskModel(load_base_model(checkpoint))
    quality = evaluate(model, AdapterParameters(adapter), texts)
    assert sum(quality.num_steps(TREE)) == engine.stats.num_steps


def test_pair_scores_that_differ_from_the_engine_are_refused(
    session: Session, adapter: Adapter
) -> None:
    other = {name: array + 1 for name, array in adapter.pairs.items()}
    with pytest.raises(EngineError, match="other pair scores than engine"):
        session.using(adapter=replace(adapter, pairs=other))
    session.using(adapter=replace(adapter, pairs={}))  # an adapter without pair scores is accepted


def test_a_missing_table_is_reported(session: Session, tmp_path: Path) -> None:
    shutil.copytree(session.engine.path, tmp_path / "e")
    (tmp_path / "e" / PAIRS_FILE).unlink()
    with pytest.raises(EngineError, match=r"pairs.safetensors is missing"):
        Session.open(tmp_path / "e")


@pytest.mark.slow
def test_a_rule_is_learned_and_noise_is_not() -> None:
    """The rule: token t is followed by the draft whose embedding is t's embedding, rotated."""
    torch = pytest.importorskip("torch")
    from bita.tuning.pair_training import PairExamples, fit_pairs

    generator = torch.Generator().manual_seed(0)
    table = torch.randn(60, 8, generator=generator) + 3
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    wanted = (((table - 3) @ rotation) @ (table - 3).T).argmax(1)

    def examples(count: int, by_rule: bool) -> PairExamples:
        before = torch.randint(60, (count,), generator=generator)
        drafts = torch.rand(count, 60, generator=generator).argsort(1)[:, :6]
        true = torch.randint(6, (count,), generator=generator)
        if by_rule:
            drafts[torch.arange(count), true] = wanted[before]
        return PairExamples(before, drafts, torch.zeros(count, 6), true)

    pairs = fit_pairs(table, examples(4000, True), examples(400, True), 8, seed=0)
    tables = tables_of([table.numpy()], pairs)
    check = examples(300, True)
    first = [
        tables.order(before[None], drafts, np.zeros(6, np.float32))[0, 0] == drafts[true]
        for before, drafts, true in zip(
            check.before.numpy(), check.drafts.numpy(), check.true.numpy(), strict=True
        )
    ]
    assert np.mean(first) > 0.6
    assert fit_pairs(table, examples(4000, False), examples(400, False), 8, seed=0) == {}
