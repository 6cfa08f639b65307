"""Each row of a joint step is bit-identical to the row in a step of its text alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from native_engines import FEATURES, lora_adapter, native_engine, read_text, require_library
from random_drafts import prompt_ids, random_tree

from bita.adapter import Adapter
from bita.engine import open_engine
from bita.errors import EngineError
from bita.runtime.backends.layout import Layout, prefill_layout, tree_layout
from bita.runtime.backends.ort_backend import OrtBackend
from bita.runtime.backends.paged_cache import PagedCache
from bita.runtime.backends.parts import Part
from bita.tree import Tree

CAPACITY = 300
LENGTHS = (1, 40, 16, 130, 77)


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Adapter]:
    """An engine, and an adapter with LoRA and a prefix of two pages, one of them partly filled."""
    require_library()
    folder = tmp_path_factory.mktemp("native")
    engine = native_engine(FEATURES[request.param], folder, "int4", CAPACITY)
    return engine.path, lora_adapter(folder / "model", 21)


def tokens_of(layout: Layout, seed: int) -> np.ndarray:
    """Make token ids for the text rows of a layout."""
    return np.array(prompt_ids(seed, int((layout.mask_index < 0).sum())))


def run_alone(
    backend: OrtBackend, adapter: Adapter, text: Sequence[int], layout: Layout, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run a step of one text and return its top ids, top logits and logits."""
    read_text(backend, adapter, np.array(text), 50)
    step = backend.bind(layout, adapter, with_logits=True)
    tokens = tokens_of(layout, seed)
    step.token_ids[0, : len(tokens)] = tokens
    step.run()
    assert step.logits is not None
    return step.top_ids.copy(), step.top_logits.copy(), step.logits.copy()


@pytest.mark.parametrize("with_logits", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_bit_identical_to_those_of_separate_steps(
    made: tuple[Path, Adapter], seed: int, with_logits: bool
) -> None:
    """Random trees share steps with pieces of prompts, for texts of several lengths."""
    path, adapter = made
    backend = OrtBackend(open_engine(path), num_threads=1, kept_bytes=1 << 22)
    main = backend.cache
    assert isinstance(main, PagedCache)
    layouts = [
        tree_layout(random_tree(seed), 1),
        prefill_layout(30 + seed, 3, 1),
        tree_layout(Tree.root_only(), 1),
        tree_layout(random_tree(seed + 9), 1),
        prefill_layout(5, 0, 1),
    ]
    texts = [prompt_ids(number, length) for number, length in enumerate(LENGTHS)]
    expected = [
        run_alone(backend, adapter, text, layout, number)
        for number, (text, layout) in enumerate(zip(texts, layouts, strict=True))
    ]
    parts = []
    for number, (text, layout) in enumerate(zip(texts, layouts, strict=True)):
        read_text(backend, adapter, np.array(text), 64)
        cache = main.new_sibling()
        cache.start(adapter)
        main.exchange(cache)
        cache.reserve(layout.num_rows, layout.num_rows)
        parts.append(Part(cache, layout, tokens_of(layout, number)))
    step = backend.joint_step(adapter)
    assert step is not None
    for order in (range(5), (4, 2, 0), (1, 3), (3,)):
        chosen = [parts[number] for number in order]
        step.run(chosen, with_logits)
        for number, part in zip(order, chosen, strict=True):
            top_ids, top_logits, logits = expected[number]
            np.testing.assert_array_equal(part.top_ids, top_ids)
            np.testing.assert_array_equal(part.top_logits, top_logits)
            assert (part.logits is not None) == with_logits
            if part.logits is not None:
                np.testing.assert_array_equal(part.logits, logits)


def test_a_step_can_grow_in_texts_and_rows(made: tuple[Path, Adapter]) -> None:
    path, adapter = made
    backend = OrtBackend(open_engine(path), num_threads=1, kept_bytes=1 << 23)
    main, layout = backend.cache, prefill_layout(20, 2, 1)
    assert isinstance(main, PagedCache)
    expected = run_alone(backend, adapter, [], layout, 7)
    step = backend.joint_step(adapter)
    assert step is not None
    caches = [main.new_sibling() for _ in range(19)]
    for count in (2, 19, 9):
        parts = [Part(cache, layout, tokens_of(layout, 7)) for cache in caches[:count]]
        for part in parts:
            part.cache.start(adapter)
            part.cache.reserve(22, 22)
        step.run(parts)
        for part in parts:
            np.testing.assert_array_equal(part.top_ids, expected[0])
            np.testing.assert_array_equal(part.top_logits, expected[1])


def test_an_error_of_an_operator_is_reported(made: tuple[Path, Adapter]) -> None:
    path, adapter = made
    backend = OrtBackend(open_engine(path), num_threads=1)
    main, layout = backend.cache, tree_layout(Tree.root_only(), 1)
    assert isinstance(main, PagedCache)
    main.start(adapter)
    main.reserve(1, 1)
    step = backend.joint_step(adapter)
    assert step is not None
    twice = [Part(main, layout, np.array([5])) for _ in range(2)]
    with pytest.raises(EngineError, match="two rows write to slot"):
        step.run(twice)
