"""Tests of LoRA on mask rows: the adapter file, engines with LoRA, and unchanged text."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from make_tiny_engine import write_plain_model

from bita.adapter import Adapter, random_adapter, untuned_adapter
from bita.cli.main import main
from bita.errors import AdapterError, EngineError
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.checkpoint import Checkpoint
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.lora import LORA_TENSORS, site_sizes, starting_lora
from bita.runtime.session import Session
from bita.tree import Tree

RANK = 3
TREE = Tree.triangle((3, 2, 1), 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(write_plain_model(tmp_path_factory.mktemp("plain"))))


@pytest.fixture(scope="module")
def adapter(checkpoint: Checkpoint) -> Adapter:
    """Return a random adapter with values small enough that some drafts are right."""
    lora = starting_lora(site_sizes(checkpoint), 2, RANK, seed=0)
    return random_adapter(identify(checkpoint), 3, 2, scale=0.4, seed=4, lora_like=lora)


@pytest.fixture(scope="module")
def session(
    checkpoint: Checkpoint, adapter: Adapter, tmp_path_factory: pytest.TempPathFactory
) -> Session:
    out = tmp_path_factory.mktemp("engines") / "lora"
    build_engine(check_build(checkpoint, adapter, out, BuildOptions(precision="fp32", tree=TREE)))
    return Session.open(out, num_threads=1)


def prompt(seed: int, length: int = 12) -> list[int]:
    return np.random.default_rng(seed).integers(4, 300, length).tolist()


def test_load_returns_the_saved_adapter(adapter: Adapter, tmp_path: Path) -> None:
    adapter.save(tmp_path / "a.safetensors")
    loaded = Adapter.load(tmp_path / "a.safetensors")
    assert loaded.lora_rank == RANK
    assert set(loaded.tensors()) == {*LORA_TENSORS, *adapter.tensors()}
    for name, array in adapter.tensors().items():
        np.testing.assert_array_equal(loaded.tensors()[name], array)


def test_a_file_with_lora_has_a_newer_format_version(adapter: Adapter, tmp_path: Path) -> None:
    """Readers without LoRA refuse version 2; without LoRA the version stays 1."""
    adapter.save(tmp_path / "lora")
    replace(adapter, lora={}).save(tmp_path / "plain")
    assert b'\\"format_version\\": \\"2\\"' in (tmp_path / "lora").read_bytes()
    assert b'\\"format_version\\": \\"1\\"' in (tmp_path / "plain").read_bytes()


def test_shapes_that_do_not_fit_are_listed(adapter: Adapter) -> None:
    lora = dict(adapter.lora)
    lora["lora_o_up"] = lora["lora_o_up"][:, :, 1:]
    lora["lora_gate_up_down"] = lora["lora_gate_up_down"][:, :, 1:]
    with pytest.raises(AdapterError, match=r"(?s)2 faults.*\[2, 3, 31\], not \[2, 3, 32\]"):
        replace(adapter, lora=lora)
    del lora["lora_down_up"]
    with pytest.raises(AdapterError, match="tensor 'lora_down_up' is missing"):
        replace(adapter, lora=lora)


def test_untuned_lora_adds_nothing(checkpoint: Checkpoint) -> None:
    adapter = untuned_adapter(checkpoint, rank=RANK)
    assert adapter.lora_rank == RANK
    assert all(adapter.lora[name].any() == name.endswith("_down") for name in LORA_TENSORS)
    assert untuned_adapter(checkpoint).lora == {}


@pytest.mark.parametrize("seed", range(4))
def test_tree_text_equals_ar_text(session: Session, seed: int) -> None:
    ar = session.using(tree=Tree.root_only())
    expected = ar.generate(prompt(seed), 60, ignore_eos=True).token_ids
    for mode in ("exact", "tree"):
        tree = session.using(mode=mode)
        assert tree.generate(prompt(seed), 60, ignore_eos=True).token_ids == expected


def test_lora_changes_drafts_and_not_the_text(session: Session, adapter: Adapter) -> None:
    without = session.using(adapter=replace(adapter, lora={}), mode="tree")
    within = session.using(mode="tree")
    paths = []
    for each in (within, without):
        texts = [each.generate(prompt(seed), 60, ignore_eos=True).token_ids for seed in range(6)]
        paths.append((texts, each.stats.num_steps))
    assert paths[0][0] == paths[1][0]
    assert paths[0][1] != paths[1][1]


def test_an_adapter_without_lora_drafts_the_same_in_both_engines(
    session: Session, adapter: Adapter, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    plain = replace(adapter, lora={})
    build_engine(
        check_build(checkpoint, plain, tmp_path / "e", BuildOptions(precision="fp32", tree=TREE))
    )
    other = Session.open(tmp_path / "e", num_threads=1)
    found = session.using(adapter=plain)
    for each in (other, found):
        each.generate(prompt(9), 60, ignore_eos=True)
    assert found.stats.num_accepted == other.stats.num_accepted
    assert session.engine.manifest.lora_rank == RANK
    assert other.engine.manifest.lora_rank == 0
    with pytest.raises(EngineError, match="LoRA of rank 3, the engine was built for an adapter wi"):
        other.using(adapter=adapter)


def test_any_rank_fits_an_engine_with_lora(session: Session, checkpoint: Checkpoint) -> None:
    wide = starting_lora(site_sizes(checkpoint), 2, 7, seed=0)
    adapter = random_adapter(identify(checkpoint), 3, 2, scale=0.4, lora_like=wide)
    ar = session.using(tree=Tree.root_only())
    expected = ar.generate(prompt(1), 40, ignore_eos=True).token_ids
    found = session.using(adapter=adapter, mode="tree").generate(prompt(1), 40, ignore_eos=True)
    assert found.token_ids == expected


def test_inspect_and_verify_support_lora(
    adapter: Adapter, session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter.save(tmp_path / "a.safetensors")
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    assert "LoRA rank" in capsys.readouterr().out
    assert main(["inspect", str(session.engine.path)]) == 0
    assert "LoRA of rank 3" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", str(session.engine.path), "--limit", "2", "--max-new-tokens", "9"]) == 0
