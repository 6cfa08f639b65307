"""A row is bit-identical in any step and order of rows, with any threads, on any ISA."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_engines import FEATURES, native_engine, read_text, require_library, run_with
from random_drafts import AR, drafting_adapter, logits_of_text, prompt_ids, random_tree
from speed import slow_but

from bita.adapter import Adapter
from bita.engine import Engine
from bita.engine_adapter import read_adapter
from bita.runtime.backends.layout import Layout, prefill_layout, tree_layout
from bita.runtime.backends.ort_backend import OrtBackend
from bita.runtime.session import Session
from bita.tree import Path as RankPath
from bita.tree import Tree
from bita.tree_table import Trees, TreeTable

LONG = 620  # tokens: more than two chunks of attention
TEXT = np.random.default_rng(0).integers(4, 320, 50)
TREES: dict[str, Trees] = {
    "(5,4,3)": Tree.triangle(),
    "chain": Tree.chain(3),
    "table": TreeTable(
        (AR, Tree.chain(5, 0).with_guesses(1), Tree.triangle((3, 2), 2), Tree.chain(3, 1)),
        (0, 1, 2),
        ((0, 2, 1), (3, 3, 0), (2, 1, 3)),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    require_library()


@pytest.fixture(scope="module")
def engine_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    """Return a function that builds an engine of FEATURES, once for each set of arguments."""

    @cache
    def build(features: str, precision: str = "int4", capacity: int = 200) -> Engine:
        folder = tmp_path_factory.mktemp("engine")
        return native_engine(FEATURES[features], folder, precision, capacity)

    return build


@pytest.fixture
def isas() -> Iterator[Sequence[str]]:
    """The ISAs that this processor can run; the best one is restored at the end."""
    from bita.runtime.native.library import loaded_operators, use_isa

    operators = loaded_operators()
    yield operators.isas
    use_isa(operators.isa)


def shuffle_rows(layout: Layout, rng: np.random.Generator) -> tuple[Layout, np.ndarray]:
    """Reorder the rows of a layout so that each still follows the rows that it sees.

    Mask rows stay last. Also returns the old row of each new one.
    """
    order: list[int] = []
    waiting = [*rng.permutation(layout.first_mask_row)]
    waiting += [*range(layout.first_mask_row, layout.num_rows)]
    while waiting:
        ready = [row for row in waiting if {*np.flatnonzero(layout.sees[row])} <= {*order, row}]
        order.append(int(ready[0]))
        waiting.remove(ready[0])
    rows = np.array(order)
    sees = layout.sees[np.ix_(rows, rows)]
    changed = Layout(layout.offsets[rows], layout.mask_index[rows], sees, layout.output_rows)
    return changed, rows


def logits_by_path(
    backend: OrtBackend, adapter: Adapter, tree: Tree, tokens: np.ndarray
) -> dict[RankPath, np.ndarray]:
    """Return the logits of each node, decoded plainly along its path with one row per step."""
    step = backend.bind(tree_layout(AR, 1), adapter, with_logits=True)
    length, found = backend.cache.length, {}
    for path in tree.paths:
        for depth in range(len(path) + 1):
            node = tree.paths.index(path[:depth])
            backend.cache.length = length + depth
            found[path] = run_with(step, tokens[node : node + 1])[0]
    backend.cache.length = length
    return found


@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("features", slow_but(FEATURES, "llama3", "gemma3_text"))
def test_nodes_in_any_order_are_bit_identical_to_plain_decoding(
    engine_of: Callable[..., Engine], features: str, precision: str
) -> None:
    engine = engine_of(features, precision)
    backend, adapter = OrtBackend(engine, 1), read_adapter(engine)
    read_text(backend, adapter, TEXT, 16)
    for seed in range(6):
        rng, tree = np.random.default_rng(seed), random_tree(seed)
        tokens = rng.integers(4, 320, tree.num_nodes)
        expected = logits_by_path(backend, adapter, tree, tokens)
        layout = tree_layout(tree, 1)
        in_order = run_with(backend.bind(layout, adapter, True), tokens)
        for node, path in enumerate(tree.paths):
            np.testing.assert_array_equal(in_order[node], expected[path])
        other, order = shuffle_rows(layout, rng)
        step = backend.bind(other, adapter, True)
        found = run_with(step, tokens[order[order < tree.num_nodes]])
        np.testing.assert_array_equal(found, in_order[order])  # includes mask rows


@pytest.mark.parametrize("features", ["llama3", "gemma2", "odd sizes"])
def test_a_row_is_bit_identical_in_steps_of_1_to_64_rows(
    engine_of: Callable[..., Engine], features: str
) -> None:
    engine = engine_of(features)
    backend, adapter = OrtBackend(engine, 1), read_adapter(engine)
    tokens = np.random.default_rng(1).integers(4, 320, 64)
    read_text(backend, adapter, TEXT[:9], 16)
    expected = []
    for row in range(64):
        expected.append(run_with(backend.bind(tree_layout(AR, 1), adapter, True), tokens[[row]])[0])
        backend.cache.length += 1
    for num_rows in range(1, 65):
        read_text(backend, adapter, TEXT[:9], 16)
        layout = prefill_layout(num_rows, 0, 1)
        layout = Layout(layout.offsets, layout.mask_index, layout.sees, np.arange(num_rows))
        found = run_with(backend.bind(layout, adapter, True), tokens[:num_rows])
        np.testing.assert_array_equal(found, expected[:num_rows])


@pytest.mark.parametrize("features", slow_but(FEATURES, "llama3", "gemma3_text"))
def test_logits_are_the_same_for_all_threads_and_isas(
    engine_of: Callable[..., Engine], isas: Sequence[str], features: str
) -> None:
    from bita.runtime.native.library import use_isa

    engine = engine_of(features)
    adapter, tree = read_adapter(engine), random_tree(3)
    tokens = np.random.default_rng(3).integers(4, 320, tree.num_nodes)
    found: dict[str, np.ndarray] = {}
    for isa in isas:
        use_isa(isa)
        for num_threads in (1, 2, 3, 4):
            backend = OrtBackend(engine, num_threads)
            read_text(backend, adapter, TEXT, 7 * num_threads)
            step = backend.bind(tree_layout(tree, 1), adapter, with_logits=True)
            found[f"{isa}, {num_threads} threads"] = run_with(step, tokens)
    expected = found[f"{isas[-1]}, 1 threads"]  # plain C++
    assert expected.std() > 0.5
    for name, logits in found.items():
        np.testing.assert_array_equal(logits, expected, err_msg=name)


def test_long_texts_are_the_same_for_any_pieces_and_threads(
    engine_of: Callable[..., Engine], isas: Sequence[str]
) -> None:
    """Attention has several chunks, which threads share."""
    from bita.runtime.native.library import use_isa

    engine = engine_of("long", capacity=720)
    text = np.random.default_rng(5).integers(4, 320, LONG)
    adapter, tree = read_adapter(engine), Tree.triangle()
    tokens = np.random.default_rng(3).integers(4, 320, tree.num_nodes)
    found = []
    for isa, num_threads, piece in [(isas[0], 1, 1), *((isa, 2, 128) for isa in isas)]:
        use_isa(isa)
        backend = OrtBackend(engine, num_threads)
        read_text(backend, adapter, text, piece)
        found.append(run_with(backend.bind(tree_layout(tree, 1), adapter, True), tokens))
    for logits in found[1:]:
        np.testing.assert_array_equal(logits, found[0])


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("features", slow_but(["llama3", "mistral", "qwen3", "gemma2"], "gemma2"))
def test_trees_are_bit_identical_to_plain_decoding(
    engine_of: Callable[..., Engine], features: str, tree: str
) -> None:
    session = Session.open(engine_of(features).path, num_threads=1)
    assert session.mode == "exact"
    off_spine = 0
    for seed in range(4):
        own = session.adapter if seed == 0 else None
        adapter = own or drafting_adapter(session, prefix_length=seed, seed=seed)
        plain = session.using(tree=AR, adapter=adapter)
        drafting = session.using(tree=TREES[tree], adapter=adapter)
        prompt = prompt_ids(seed, 1 + 40 * seed)
        greedy: dict[str, Any] = {"ignore_eos": True, "logprobs": 5}
        for options in (greedy, {**greedy, "temperature": 1.0, "seed": seed}):
            expected = plain.generate(prompt, 50, **options)
            found = drafting.generate(prompt, 50, **options)
            assert found.token_ids == expected.token_ids
            assert found.logprobs == expected.logprobs
        paths = drafting.stats.num_accepted
        off_spine += sum(count for path, count in paths.items() if {*path} - {1})
    if tree == "(5,4,3)" and features == "llama3":
        assert off_spine > 0  # otherwise branches were not tested


@pytest.mark.parametrize("seed", range(4))
def test_logits_after_accepted_branches_equal_plain_decoding(
    engine_of: Callable[..., Engine], seed: int
) -> None:
    session = Session.open(engine_of("llama3").path, num_threads=1)
    adapter = drafting_adapter(session, prefix_length=seed % 3, seed=seed)
    plain = session.using(tree=AR, adapter=adapter)
    drafting = session.using(tree=random_tree(seed), adapter=adapter)
    expected = logits_of_text(plain, prompt_ids(seed), 60)
    found = logits_of_text(drafting, prompt_ids(seed), 60)
    np.testing.assert_array_equal(np.array(found), np.array(expected))


@pytest.mark.parametrize("cache_type", ["float16", "float32"])
def test_a_cache_of_either_type_can_be_filled(cache_type: str, tmp_path: Path) -> None:
    config: Mapping[str, object] = FEATURES["llama3"]
    engine = native_engine(config, tmp_path, capacity=70, with_lora=False, cache_type=cache_type)
    session = Session.open(engine.path, num_threads=1)
    assert session.backend.cache.dtype == np.dtype(cache_type)
    plain = session.using(tree=AR).generate(prompt_ids(2, 30), 1000, ignore_eos=True)
    found = session.generate(prompt_ids(2, 30), 1000, ignore_eos=True)
    assert found.finish_reason == plain.finish_reason == "capacity"
    assert found.token_ids == plain.token_ids
    assert 30 + len(found.token_ids) == 70 - 5 + 1  # the last token is not cached
