"""The exported step graph equals transformers: all families, node and mask rows, cached steps."""

from pathlib import Path

import numpy as np
import pytest
from tiny_models import FAMILIES, write_tiny_model

from bita.adapter import Adapter, random_adapter
from bita.engine import open_engine
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.lora import site_sizes, starting_lora
from bita.runtime.backends.layout import prefill_layout, tree_layout
from bita.runtime.backends.ort_backend import OrtBackend
from bita.tree import Tree

pytest.importorskip("torch")
pytest.importorskip("transformers")

CAPACITY = 160
TOLERANCE = 2e-4
TREE = Tree.from_paths([(1,), (1, 1), (1, 1, 1), (2,), (1, 2), (2, 1), (4,)], num_masks=3)


@pytest.fixture(scope="module", params=[(name, rank) for name in FAMILIES for rank in (0, 3)])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Family":
    name, rank = request.param
    return Family(name, rank, tmp_path_factory.mktemp(name))


class Family:
    """A tiny model, its engine with a random adapter (P = 5), and the torch reference."""

    def __init__(self, name: str, rank: int, directory: Path) -> None:
        from bita.torch.reference import ReferenceDecoder, load_reference_model

        model_dir = write_tiny_model(name, directory / "model")
        checkpoint = open_checkpoint(str(model_dir))
        lora = starting_lora(site_sizes(checkpoint), identify(checkpoint).num_layers, rank, seed=0)
        self.adapter: Adapter = random_adapter(
            identify(checkpoint), 3, 5, scale=0.5, lora_like=lora
        )
        options = BuildOptions(precision="fp32", capacity=CAPACITY, tree=TREE)
        build_engine(check_build(checkpoint, self.adapter, directory / "engine", options))
        self.backend = OrtBackend(open_engine(directory / "engine"), num_threads=1)
        self.backend.cache.start(self.adapter)
        self.reference = ReferenceDecoder(load_reference_model(model_dir), self.adapter)
        rng = np.random.default_rng(1)
        self.text = rng.integers(3, 300, 60).tolist()
        self.drafts = rng.integers(3, 300, TREE.num_nodes - 1).tolist()

    def prefill(self, tokens: list[int], num_masks: int = 0) -> np.ndarray:
        """Return the logits of the last row and of the masks after it."""
        layout = prefill_layout(len(tokens), num_masks, 2)
        step = self.backend.bind(layout, self.adapter, with_logits=True)
        step.token_ids[0, : len(tokens)] = tokens
        step.run()
        self.backend.cache.length += len(tokens)
        assert step.logits is not None
        return step.logits

    def step_logits(self) -> np.ndarray:
        """Return the logits of all rows of TREE after the text, without committing the step."""
        step = self.backend.bind(tree_layout(TREE, 2), self.adapter, with_logits=True)
        step.token_ids[0, : TREE.num_nodes] = [self.text[-1], *self.drafts]
        step.run()
        assert step.logits is not None
        np.testing.assert_array_equal(step.logits.argmax(-1), step.top_ids[:, 0])
        return step.logits


def test_cached_tree_step_equals_transformers(family: Family) -> None:
    """Compare nodes and masks of a tree after a cached text, for the features of each family."""
    nodes, masks = family.reference.step_outputs(family.text, TREE, family.drafts)
    family.backend.cache.start(family.adapter)
    for start in range(0, len(family.text) - 1, 25):
        family.prefill(family.text[:-1][start : start + 25])
    found = family.step_logits()
    expected = np.concatenate([nodes.numpy(), masks.numpy()])
    assert expected.std() > 1  # otherwise a tolerance in logits proves nothing
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_prefill_with_its_mask_group_equals_transformers(family: Family) -> None:
    tree = Tree.root_only(num_masks=3)
    nodes, masks = family.reference.step_outputs(family.text, tree, [])
    family.backend.cache.start(family.adapter)
    found = family.prefill(family.text, num_masks=3)
    expected = np.concatenate([nodes.numpy(), masks.numpy()])
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_nodes_do_not_depend_on_the_adapter(family: Family) -> None:
    """The graph is lossless: another adapter does not change a bit of a node's logits."""
    family.backend.cache.start(family.adapter)
    family.prefill(family.text[:-1])
    before = family.step_logits()
    own = family.adapter
    family.adapter = random_adapter(
        own.identity, 3, own.prefix_length, scale=9.0, seed=7, lora_like=own.lora
    )
    try:
        family.backend.cache.start(family.adapter)
        family.prefill(family.text[:-1])
        after = family.step_logits()
    finally:
        family.adapter = own
    np.testing.assert_array_equal(before[: TREE.num_nodes], after[: TREE.num_nodes])
    assert np.abs(before[TREE.num_nodes :] - after[TREE.num_nodes :]).max() > 0.1
