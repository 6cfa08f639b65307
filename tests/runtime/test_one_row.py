"""Steps of one row are bit-identical to larger ones, where linear layers allow it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from make_tiny_engine import CONFIG, write_plain_model
from speed import thorough_but

from bita.adapter import Adapter, random_adapter
from bita.calibration.latency import measure_latency
from bita.calibration.probe import PIECE, Probe
from bita.engine import ADAPTER_FILE, Engine, open_engine
from bita.errors import EngineError
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.runtime.backends.layout import prefill_layout, tree_layout
from bita.runtime.backends.ort_backend import BoundStep, OrtBackend
from bita.runtime.backends.processor import VNNI, X86, multiplies_int8_exactly
from bita.runtime.session import Session
from bita.tree import Tree
from bita.tree_table import TreeTable

CAPACITY = 200
MODELS: dict[str, Mapping[str, Any]] = {
    "llama": CONFIG,
    "norms of heads": {**CONFIG, "model_type": "qwen3"},
    "window": {**CONFIG, "model_type": "mistral", "sliding_window": 24},
}
needs_exact_int8 = pytest.mark.skipif(
    not multiplies_int8_exactly(), reason=f"only on processors with one of {VNNI}, or not {X86}"
)
SWITCHING = TreeTable(
    (Tree.root_only(), Tree.chain(5, 0).with_guesses(1), Tree.root_only(1), Tree.chain(3, 1)),
    (0, 1, 2),
    ((0, 2, 1), (3, 3, 0)),
)


def build_test_engine(model: str, precision: str, directory: Path) -> Engine:
    checkpoint = open_checkpoint(str(write_plain_model(directory / "model", config=MODELS[model])))
    adapter = random_adapter(identify(checkpoint), num_masks=3, prefix_length=2, scale=0.4)
    options = BuildOptions(precision=precision, capacity=CAPACITY, tree=Tree.chain(3))
    build_engine(check_build(checkpoint, adapter, directory / "engine", options))
    return open_engine(directory / "engine")


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(4, 320, length).tolist()


@needs_exact_int8
@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("model", MODELS)
def test_a_single_row_is_bit_identical_to_one_of_many(
    model: str, precision: str, tmp_path: Path
) -> None:
    engine = build_test_engine(model, precision, tmp_path)
    session = Session.open(engine.path, num_threads=1)
    assert session.min_exact_rows == 1
    backend, adapter = session.backend, session.adapter
    backend.cache.start(adapter)
    text = prompt(1, 60)
    prefill = backend.bind(prefill_layout(60, 0, 1), adapter)
    prefill.token_ids[0] = text
    prefill.run()
    backend.cache.length = 60
    trees = [Tree.root_only(), Tree.root_only(1), Tree.chain(4, 2), Tree.triangle()]
    steps = [backend.bind(tree_layout(tree, 1), adapter, with_logits=True) for tree in trees]
    assert steps[0].num_rows == 1
    for token in prompt(2, 5):
        for step in steps:
            step.token_ids[0, 0] = token
            step.run()
        for step in steps[1:]:
            assert step.logits is not None
            assert steps[0].logits is not None
            np.testing.assert_array_equal(step.logits[0], steps[0].logits[0])
        backend.cache.length += 1


@needs_exact_int8
@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("adapter_seed", thorough_but(range(3), 0))
def test_trees_with_steps_of_one_row_give_the_text_of_plain_decoding(
    precision: str, adapter_seed: int, tmp_path: Path
) -> None:
    session = Session.open(build_test_engine("llama", precision, tmp_path).path, num_threads=1)
    adapter = random_adapter(session.adapter.identity, 3, 2, scale=0.4, seed=adapter_seed)
    plain, padded = (
        session.using(tree=Tree.root_only(), adapter=adapter, min_rows=rows) for rows in (1, 2)
    )
    switching = session.using(tree=SWITCHING, adapter=adapter)
    for length in (1, 2, 9, 40):
        expected = plain.generate(prompt(length, length), 300, ignore_eos=True)
        assert expected.finish_reason == "capacity"
        assert len(expected.token_ids) == CAPACITY - 2 - length  # a prefix of 2, and two free slots
        for each in (padded, switching):
            found = each.generate(prompt(length, length), 300, ignore_eos=True)
            assert found.token_ids == expected.token_ids
            assert found.finish_reason == "capacity"
    rows = {step.num_rows for step in switching.decoder.steps}
    assert rows == {1, 2, 6, 8}
    assert switching.stats.num_steps < switching.stats.num_tokens


def test_linear_layers_that_depend_on_the_rows_are_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build_test_engine("llama", "fp32", tmp_path)
    run = BoundStep.run

    def perturb_single_rows(step: BoundStep) -> None:
        run(step)
        if step.num_rows == 1:
            step.top_logits[...] = np.nextafter(step.top_logits, np.float32(np.inf))

    monkeypatch.setattr(BoundStep, "run", perturb_single_rows)
    session = Session.open(engine.path, num_threads=1)
    assert session.min_exact_rows == 2
    assert session.using(tree=Tree.root_only()).decoder.steps[0].num_rows == 2


def test_graphs_without_the_padding_property_use_two_rows(tiny_engine: Path) -> None:
    graph = onnx.load(tiny_engine / "model.onnx", load_external_data=False)
    del graph.metadata_props[:]
    engine = open_engine(tiny_engine)
    backend = OrtBackend(engine, num_threads=1, graph=graph.SerializeToString())
    assert backend.min_exact_rows(Adapter.load(engine.file(ADAPTER_FILE))) == 2


def test_a_step_of_one_row_needs_two_slots(tiny_engine: Path) -> None:
    engine = open_engine(tiny_engine)
    backend, adapter = OrtBackend(engine, 1), Adapter.load(engine.file(ADAPTER_FILE))
    backend.cache.start(adapter)
    step = backend.bind(tree_layout(Tree.root_only(), 1), adapter)
    assert (step.num_rows, step.num_slots) == (1, 2)
    backend.cache.length = backend.cache.capacity - adapter.prefix_length - 2
    step.run()
    backend.cache.length += 1
    with pytest.raises(EngineError, match="a step of 1 rows does not fit after 383 of 384 cache"):
        step.run()


def test_measurements_stay_inside_the_cache(tiny_engine: Path) -> None:
    """Their last steps have one row, and the text fills the cache."""
    engine = open_engine(tiny_engine)
    latency = measure_latency(engine, max_rows=1, repeats=1, num_threads=1)
    prefix = engine.manifest.prefix_length
    assert latency.cache_lengths[-1] == engine.manifest.capacity - prefix - 2
    probe = Probe(engine, [], 1)
    text = prompt(3, 2 * PIECE + 1)
    assert sum(len(values["logits"]) for values in probe.read(text)) == len(text)
    whole = prompt(3, 1000)
    rows = sum(len(values["logits"]) for values in probe.read(whole))
    assert rows == probe.max_tokens == engine.manifest.capacity - prefix - 1
