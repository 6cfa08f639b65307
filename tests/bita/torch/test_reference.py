"""The reference decoder equals plain decoding, and its rows equal sequences without a tree."""

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from speed import slow_but
from tiny_models import FAMILIES, ArrayCheckpoint, write_tiny_model

from bita.adapter import Adapter, random_adapter
from bita.errors import AdapterError, TreeError
from bita.identity import ModelIdentity, identify
from bita.tree import Tree

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import DynamicCache  # noqa: E402
from transformers.cache_utils import DynamicLayer  # noqa: E402

from bita.torch.reference import (  # noqa: E402
    NO_DRAFT,
    ReferenceDecoder,
    Step,
    cut,
    extended_embedding,
    greedy,
    load_reference_model,
    next_drafts,
    walk,
)

TEXT = tuple(range(10, 32))  # longer than the windows of 16
Load = Callable[[str], Any]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Return a cached function from a family to its tiny model."""
    return functools.cache(
        lambda family: load_reference_model(
            write_tiny_model(family, tmp_path_factory.mktemp(family))
        )
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def identity_of(model: Any) -> ModelIdentity:
    tensors = {name: weight.numpy() for name, weight in model.state_dict().items()}
    return identify(ArrayCheckpoint(model.config.to_dict(), tensors))


def adapter_for(model: Any, prefix_length: int = 0, seed: int = 0) -> Adapter:
    return random_adapter(identity_of(model), 3, prefix_length, seed=seed)


def random_tree(seed: int) -> Tree:
    rng = random.Random(seed)
    paths: list[tuple[int, ...]] = [()]
    for _ in range(rng.randint(1, 9)):
        parent = rng.choice([path for path in paths if len(path) < 3])
        rank = 1 + sum(path[:-1] == parent and path != () for path in paths)
        paths.append((*parent, rank))
    return Tree.from_paths(paths, {path: rng.randint(0, 3) for path in paths})


def tokens_to(tree: Tree, node: int, drafts: Sequence[int]) -> list[int]:
    """Return the drafts on the path to a node."""
    path = []
    while node > 0:
        path.append(drafts[node - 1])
        node = tree.parents[node]
    return path[::-1]


@pytest.mark.parametrize("prefix_length", [0, 5])
@pytest.mark.parametrize("family", slow_but(FAMILIES, "llama", "gemma3_text"))
def test_the_text_equals_plain_decoding(load: Load, family: str, prefix_length: int) -> None:
    model = load(family)
    expected = greedy(model, TEXT, 12)
    assert len(set(expected)) > 3
    for seed in range(3):
        decoder = ReferenceDecoder(model, adapter_for(model, prefix_length, seed))
        result = decoder.generate(TEXT, random_tree(seed), 12)
        assert result.token_ids == expected
        assert sum(result.tokens_per_step) == 12


@pytest.mark.parametrize("family", FAMILIES)
def test_node_rows_do_not_depend_on_the_adapter(load: Load, family: str) -> None:
    model, tree = load(family), Tree.triangle()
    outputs = [
        ReferenceDecoder(model, adapter_for(model, 5, seed)).step_outputs(TEXT, tree, range(12))
        for seed in (0, 1)
    ]
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert not torch.isclose(outputs[0][1], outputs[1][1]).all(dim=-1).any()


@pytest.mark.parametrize("scale", [1e4, 1e37])
@pytest.mark.parametrize("family", FAMILIES)
def test_node_rows_do_not_depend_on_large_adapter_values(
    load: Load, family: str, scale: float
) -> None:
    model, tree = load(family), Tree.triangle()
    large = random_adapter(identity_of(model), 3, 5, scale=scale)
    nodes, masks = ReferenceDecoder(model, large).step_outputs(TEXT, tree, range(12))
    ordinary = ReferenceDecoder(model, adapter_for(model, 5))
    assert torch.equal(nodes, ordinary.step_outputs(TEXT, tree, range(12))[0])
    assert masks.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_sequences_without_a_tree(load: Load, family: str) -> None:
    """A node and the masks of its group are run one after the other as plain causal text."""
    model, tree = load(family), random_tree(7)
    drafts = [random.Random(node).randrange(300) for node in range(tree.num_nodes - 1)]
    adapter = adapter_for(model)
    nodes, masks = ReferenceDecoder(model, adapter).step_outputs(TEXT, tree, drafts)
    vocab_size = nodes.shape[1]
    for node, group in enumerate(tree.groups):
        text = [*TEXT, *tokens_to(tree, node, drafts)]
        mask_ids = [vocab_size + k for k in range(len(group))]
        with extended_embedding(model, torch.from_numpy(adapter.mask_embeddings)):
            logits = model(input_ids=torch.tensor([text + mask_ids])).logits[0, len(text) - 1 :]
        rows = [nodes[node], *masks[group.start - tree.num_nodes :][: len(group)]]
        torch.testing.assert_close(torch.stack(rows), logits, rtol=0, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "smollm3", "phi3", "granite"])
def test_only_masks_see_the_prefix_as_their_past(load: Load, family: str) -> None:
    """The text runs first without the prefix, then the masks causally after prefix and text."""
    model = load(family)
    adapter = adapter_for(model, 5)
    tree = Tree.root_only(3)
    _, masks = ReferenceDecoder(model, adapter).step_outputs(TEXT, tree, [])
    text = DynamicCache()
    vocab_size = model(input_ids=torch.tensor([TEXT]), past_key_values=text).logits.shape[-1]
    past = DynamicCache()
    for index, layer in enumerate(text.layers):
        assert isinstance(layer, DynamicLayer)
        keys = torch.from_numpy(adapter.prefix_keys[index][None])
        values = torch.from_numpy(adapter.prefix_values[index][None])
        past.update(torch.cat([keys, layer.keys], 2), torch.cat([values, layer.values], 2), index)
    with extended_embedding(model, torch.from_numpy(adapter.mask_embeddings)):
        logits = model(
            input_ids=torch.arange(3)[None] + vocab_size,
            position_ids=torch.arange(3)[None] + len(TEXT),
            past_key_values=past,
        ).logits[0]
    torch.testing.assert_close(masks, logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_the_prefix_stays_visible_outside_a_window(load: Load, family: str) -> None:
    """The first layer's values change the mask row although they are outside the window."""
    model = load(family)
    adapters = [adapter_for(model, 5), adapter_for(model, 5)]
    adapters[1].prefix_values[0] += 1
    outputs = [
        ReferenceDecoder(model, adapter).step_outputs(TEXT * 3, Tree.root_only(1), [])[1]
        for adapter in adapters
    ]
    assert not torch.allclose(*outputs)


@pytest.mark.parametrize("seed", range(4))
def test_right_drafts_are_all_accepted_in_one_step(load: Load, seed: int) -> None:
    """Any branch of the tree may hold the true continuation."""
    model = load("qwen3")
    tree = random_tree(seed)
    truth = greedy(model, TEXT, 4)
    deepest = tree.depths.index(tree.max_depth)
    path = [deepest]
    while path[0]:
        path.insert(0, tree.parents[path[0]])
    drafts = [(truth[0] + node) % 300 for node in range(1, tree.num_nodes)]
    for node in path[1:]:
        drafts[node - 1] = truth[tree.depths[node] - 1]
    step = ReferenceDecoder(model, adapter_for(model)).step(TEXT, tree, drafts)
    assert step.path == tuple(path)
    assert step.emitted == truth[: tree.max_depth + 1]
    assert len(step.ranked) == tree.num_masks[deepest]


class Clairvoyant(ReferenceDecoder):
    """A decoder whose drafts are all right, so that every step but the last fills the chain."""

    truth: tuple[int, ...] = ()

    def step(self, text_ids: Sequence[int], tree: Tree, draft_tokens: Sequence[int]) -> Step:
        start = len(text_ids) - len(TEXT)
        return super().step(text_ids, tree, self.truth[start : start + tree.num_nodes - 1])


@pytest.fixture
def clairvoyant(load: Load) -> Clairvoyant:
    model = load("llama")
    decoder = Clairvoyant(model, adapter_for(model))
    decoder.truth = greedy(model, TEXT, 16)
    return decoder


@pytest.mark.parametrize("limit", range(1, 10))
def test_the_limit_may_be_inside_an_accepted_path(clairvoyant: Clairvoyant, limit: int) -> None:
    result = clairvoyant.generate(TEXT, Tree.chain(3), limit)
    assert result.token_ids == clairvoyant.truth[:limit]
    assert result.tokens_per_step == ((4,) * (limit // 4) + (limit % 4,) * (limit % 4 > 0))


@pytest.mark.parametrize("at", range(8))
def test_eos_may_be_inside_an_accepted_path(clairvoyant: Clairvoyant, at: int) -> None:
    eos_ids = (clairvoyant.truth[at], 319)
    expected = greedy(clairvoyant.model, TEXT, 12, eos_ids)
    result = clairvoyant.generate(TEXT, Tree.chain(3), 12, eos_ids)
    assert result.token_ids == expected == clairvoyant.truth[: at + 1]
    assert result.num_steps == at // 4 + 1


def test_an_eos_in_the_prompt_does_not_end_the_text(clairvoyant: Clairvoyant) -> None:
    result = clairvoyant.generate(TEXT, Tree.chain(3), 4, eos_ids=(TEXT[-1],))
    assert result.token_ids == clairvoyant.truth[:4]


def test_walk_follows_matching_choices_only() -> None:
    tree = Tree.from_paths([(1,), (2,), (1, 1), (2, 1), (2, 2)])
    order = {path: node for node, path in enumerate(tree.paths)}
    tokens = [0] * tree.num_nodes
    for path, token in {(): 9, (1,): 5, (2,): 6, (1, 1): 7, (2, 1): 7, (2, 2): 8}.items():
        tokens[order[path]] = token

    def walk_by_path(choices: dict[tuple[int, ...], int]) -> tuple[list[tuple[int, ...]], int]:
        path, bonus = walk(tree, tokens, [choices.get(path, 99) for path in tree.paths])
        return [tree.paths[node] for node in path], bonus

    assert walk_by_path({(): 3}) == ([()], 3)
    assert walk_by_path({(): 6, (2,): 8, (2, 2): 4}) == ([(), (2,), (2, 2)], 4)
    assert walk_by_path({(): 5, (1,): 8}) == ([(), (1,)], 8)  # 8 is a child of the other node
    assert walk_by_path({(): 7}) == ([()], 7)  # 7 is a grandchild


def test_drafts_are_placed_by_depth_and_rank() -> None:
    tree = Tree.from_paths([(1,), (2,), (1, 1), (1, 3), (1, 2)])
    step = Step((0,), (9,), ((10, 11, 12), (20, 21, 22)), ((3.0, 2.0, 1.0),) * 2)
    by_path = dict(zip(tree.paths[1:], next_drafts(tree, 9, step), strict=True))
    assert by_path == {(1,): 10, (2,): 11, (1, 1): 20, (1, 2): 21, (1, 3): 22}
    shallow = replace(step, ranked=step.ranked[:1], logits=step.logits[:1])
    assert next_drafts(tree, 9, shallow).count(NO_DRAFT) == 3


def test_pair_scores_order_the_children_of_each_node() -> None:
    """The scores favor 12 after the root, 22 after 10, and 21 after 12."""
    tree = Tree.from_paths([(1,), (2,), (1, 1), (2, 1)])
    step = Step((0,), (9,), ((10, 11, 12), (20, 21, 22)), ((3.0, 2.0, 1.0),) * 2)
    wanted = {(9, 12): 2.5, (10, 22): 3.0, (12, 21): 3.0}
    drafts = next_drafts(tree, 9, step, lambda parent, child: wanted.get((parent, child), 0.0))
    assert dict(zip(tree.paths[1:], drafts, strict=True)) == {
        (1,): 12,
        (2,): 10,
        (1, 1): 21,
        (2, 1): 22,
    }


def test_cut_keeps_the_first_eos() -> None:
    assert cut((1, 2, 3, 2), 9, ()) == [1, 2, 3, 2]
    assert cut((1, 2, 3, 2), 9, (2, 3)) == [1, 2]
    assert cut((1, 2, 3, 2), 1, (2,)) == [1]


def test_the_model_is_restored_after_a_step(load: Load) -> None:
    model = load("llama")
    weight = model.get_input_embeddings().weight
    decoder = ReferenceDecoder(model, adapter_for(model))
    decoder.step(TEXT, Tree.chain(2, 2), [1, 2])
    assert model.get_input_embeddings().weight is weight is model.lm_head.weight
    with pytest.raises(IndexError):
        decoder.step((*TEXT, 400), Tree.chain(2, 2), [1, 2])
    assert model.get_input_embeddings().weight is weight


def test_adapters_trees_and_drafts_that_do_not_fit_are_refused(load: Load) -> None:
    model = load("llama")
    with pytest.raises(AdapterError, match=r"(?s)layers 6: 4.*head dim 32: 16"):
        ReferenceDecoder(model, adapter_for(load("gemma3_text")))
    decoder = ReferenceDecoder(model, adapter_for(model))
    with pytest.raises(TreeError) as caught:
        decoder.step_outputs(TEXT, Tree.chain(2, 4), [1])
    assert "a node has 4 masks, the adapter 3" in str(caught.value)
    assert "1 drafts for 2 nodes" in str(caught.value)


def test_tiny_models_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first, second, other = (
        (write_tiny_model("gemma2", tmp_path / name, seed) / "model.safetensors").read_bytes()
        for name, seed in (("first", 0), ("second", 0), ("other", 1))
    )
    assert first == second != other
