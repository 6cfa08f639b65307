"""Inputs that the runtime gives to native engines, checked with reference operators."""

from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_edits import copy_engine, edit_files, edit_manifest
from make_tiny_engine import CONFIG, write_plain_model
from native_engines import native_engine, require_library
from reference_session import use_reference_operators

from bita.adapter import random_adapter
from bita.calibration.probe import Probe
from bita.calibration.quality import Scored, measure_quality
from bita.engine import GRAPH_FILE, open_engine
from bita.engine_adapter import read_adapter
from bita.errors import EngineError, LibraryMissingError
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.runtime.backends.layout import tree_layout
from bita.runtime.backends.ort_backend import OrtBackend
from bita.runtime.backends.paged_cache import PagedCache
from bita.runtime.native import library
from bita.runtime.session import Session
from bita.tree import Tree

CAPACITY = 120
TREE = Tree.triangle((3, 2), num_masks=2)
PROMPT = [5, 9, 200, 31, 7, 88, 5, 9]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny int4 Llama with a float16 cache, next to a float32 engine in "reference"."""
    folder = tmp_path_factory.mktemp("native")
    checkpoint = open_checkpoint(str(write_plain_model(folder / "model")))
    adapter = random_adapter(identify(checkpoint), num_masks=3, prefix_length=5, scale=0.4)
    options = BuildOptions("int4", capacity=CAPACITY, tree=TREE, dialect="native")
    build_engine(check_build(checkpoint, adapter, folder / "engine", options))
    options = BuildOptions("fp32", capacity=CAPACITY)
    build_engine(check_build(checkpoint, adapter, folder / "reference", options))
    return folder / "engine"


@pytest.fixture
def engine(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_reference_operators(monkeypatch)
    return copy_engine(built, tmp_path / "engine")


def test_the_manifest_lists_the_requirements(built: Path) -> None:
    manifest = open_engine(built).manifest
    assert (manifest.dialect, manifest.precision, manifest.format_version) == ("native", "int4", 4)
    assert manifest.requires == {"onnxruntime": "1.23", "bita.operators": "3"}


@pytest.mark.slow
def test_trees_give_the_same_text_as_plain_decoding(engine: Path) -> None:
    """Drafts are the engine's own or garbage, and the text fills the cache."""
    session = Session.open(engine)
    assert session.mode == "exact"
    assert session.min_exact_rows == 1
    plain = session.using(tree=Tree.root_only())
    assert [step.num_rows for step in plain.decoder.steps] == [1]
    expected = plain.generate(PROMPT, 200, ignore_eos=True)
    assert len(expected.token_ids) == CAPACITY - 5 - len(PROMPT) + 1
    identity = session.adapter.identity
    for adapter in (None, *(random_adapter(identity, 3, 5, seed=seed) for seed in range(2))):
        found = session.using(adapter=adapter).generate(PROMPT, 200, ignore_eos=True)
        assert found.token_ids == expected.token_ids


def test_branches_are_accepted_in_mode_exact(engine: Path, tiny_engine: Path) -> None:
    session = Session.open(engine)
    assert session.backend.exact_trees
    (bound,) = session.decoder._bound.ready
    assert bound.children == TREE.children
    other = Session.open(tiny_engine, mode="exact", tree=TREE)
    assert not other.backend.exact_trees
    assert other.decoder._bound.ready[0].children[0] == (1,)


def test_an_accepted_branch_leaves_the_cache_as_plain_decoding_does(
    engine: Path,
) -> None:
    """The tokens of a branch are committed from one tree step, and fed one by one."""
    tree = Tree.from_paths([(1,), (2,), (1, 1), (2, 1), (2, 2)], num_masks=1)
    path = [tree.paths.index(each) for each in ((), (2,), (2, 2))]
    assert path != [0, 1, 2]
    logits = []
    for sizes in (tree.num_rows, 1):
        backend = OrtBackend(open_engine(engine))
        adapter = Session.open(engine).adapter
        backend.cache.start(adapter)
        tokens = np.arange(20, 20 + tree.num_nodes)
        if sizes == 1:
            step = backend.bind(tree_layout(Tree.root_only(), 1), adapter)
            for row in path:
                step.token_ids[0] = tokens[row]
                step.run()
                backend.cache.length += 1
        else:
            step = backend.bind(tree_layout(tree, 1), adapter)
            step.token_ids[0, : tree.num_nodes] = tokens
            step.run()
            backend.cache.commit(path)
        after = backend.bind(tree_layout(Tree.root_only(1), 1), adapter, with_logits=True)
        after.token_ids[0, 0] = 7
        after.run()
        assert after.logits is not None
        logits.append(after.logits)
    np.testing.assert_array_equal(logits[0], logits[1])


def test_texts_can_alternate_in_the_pages(engine: Path) -> None:
    """Rows that leave the cache return unchanged."""
    session = Session.open(engine, keep_answers=True)
    prompts = [[*PROMPT, *range(10, 30)], [*range(40, 75)]]
    alone = []
    for prompt in prompts:
        session.forget()
        alone.append(session.generate(prompt, 12, ignore_eos=True).token_ids)
    session.forget()
    streams = [session.stream(prompt, 12, ignore_eos=True) for prompt in prompts]
    for _ in zip_longest(*streams):
        pass
    assert [each.run().token_ids for each in streams] == alone
    assert session.decoder.shared_cache.store.num_bytes > 0
    assert isinstance(session.backend.cache, PagedCache)


def test_errors_of_sublayers_can_be_measured(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are errors of residual sums: products of linear layers exist only inside operators."""
    use_reference_operators(monkeypatch)
    engine = open_engine(built)
    probe = Probe(engine, ["model.layers.1.mlp.sum"])
    (values,) = probe.read(PROMPT)
    assert values["model.layers.1.mlp.sum"].shape == (len(PROMPT), 32)
    reference = open_engine(built.parent / "reference")
    quality = measure_quality(reference, engine, [Scored(tuple(PROMPT), 1)])
    assert 0.01 < quality.worst_layer_error < 1
    assert quality.worst_layer in [
        f"model.layers.{index}.{part}" for index in range(2) for part in ("self_attn", "mlp")
    ]


def edit_graph(engine: Path, edit: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(engine / GRAPH_FILE, load_external_data=False)
    edit(model)
    edit_files(engine, {GRAPH_FILE: model.SerializeToString()})


@pytest.mark.parametrize("version", ["0", "2", "", None])
def test_operators_of_another_version_are_refused(engine: Path, version: str | None) -> None:
    def edit(model: onnx.ModelProto) -> None:
        if version is None:
            del model.metadata_props[:]
        else:
            model.metadata_props[0].value = version

    edit_graph(engine, edit)
    with pytest.raises(EngineError, match=r"bita\.operators is .*: rebuild the engine, or upgrade"):
        Session.open(engine)


@pytest.mark.parametrize("requires", [{}, {"bita.operators": "2"}, {"bita.operators": "4"}])
def test_engines_for_operators_of_another_version_are_not_loaded(
    built: Path, tmp_path: Path, requires: dict[str, str]
) -> None:
    """The manifest is checked first: ONNX Runtime reports something else for an older graph."""
    require_library()
    engine = copy_engine(built, tmp_path / "engine")
    edit_manifest(engine, requires=requires)
    found = requires.get("bita.operators", "1")
    with pytest.raises(
        EngineError, match=rf"bita\.operators is '{found}', and this .* rebuild the"
    ):
        Session.open(engine)


def drop_page_list(model: onnx.ModelProto) -> None:
    names = [value.name for value in model.graph.input]
    del model.graph.input[names.index("text_pages")]


def change_dtype(model: onnx.ModelProto) -> None:
    value = next(value for value in model.graph.input if value.name == "past.1.pages")
    value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def rename_pages(model: onnx.ModelProto) -> None:
    value = next(value for value in model.graph.input if value.name == "past.1.pages")
    value.name = "past.1.key"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop_page_list, "there is no input text_pages"),
        (change_dtype, "caches are of several types: float16, float32"),
        (rename_pages, "the past caches of dialect native are pages"),
    ],
)
def test_graphs_with_wrong_inputs_are_refused(
    engine: Path, edit: Callable[[onnx.ModelProto], object], message: str
) -> None:
    edit_graph(engine, edit)
    with pytest.raises(EngineError, match=rf"(?s)is not what the manifest says.*{message}"):
        OrtBackend(open_engine(engine))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_layers", 3, "2 past caches, of 2 layers; num_layers is 3"),
        ("num_kv_heads", 4, r"past.0.pages is float16 \[\?, 2, 2, 256\], not .* \[pages, 4, 2, 25"),
        ("head_dim", 8, r"present.1.pages is .* \[pages, 2, 2, 128\]"),
        ("vocab_size", 321, r"logits is float32 \[\?, 320\], not float32 \[R, 321\]"),
        ("lora_rank", 4, "the graph has no inputs of LoRA; lora_rank is 4"),
    ],
)
def test_numbers_of_the_manifest_must_match_the_graph(
    engine: Path, name: str, value: int, message: str
) -> None:
    edit_manifest(engine, **{name: value})
    with pytest.raises(EngineError, match=rf"(?s)is not what the manifest says.*{message}"):
        OrtBackend(open_engine(engine))


def test_inputs_of_lora_must_match_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each input holds the slices of all layers."""
    use_reference_operators(monkeypatch)
    engine = native_engine(CONFIG, tmp_path)

    def edit(model: onnx.ModelProto) -> None:
        inputs = {value.name: value.type.tensor_type for value in model.graph.input}
        inputs["lora.qkv.down"].shape.dim[0].dim_value = 7
        inputs["lora.o.up"].elem_type = onnx.TensorProto.FLOAT
        next(
            value for value in model.graph.input if value.name == "lora.down.up"
        ).name = "lora.0.down.up"

    edit_graph(engine.path, edit)
    with pytest.raises(EngineError) as caught:
        OrtBackend(open_engine(engine.path))
    for part in (
        "lora.qkv.down is float16 [7, ?, 32], not float16 [2, r, 32]",
        "lora.o.up is float32 [2, 2, ?, 16], not float16 [2, 2, r, 16]",
        "input 'lora.0.down.up' is not known",
    ):
        assert part in str(caught.value)


def test_steps_share_the_lora_of_an_adapter(tmp_path: Path) -> None:
    """The values are created once, and dropped with the adapter."""
    require_library()
    engine = native_engine(CONFIG, tmp_path)
    backend, adapter = OrtBackend(engine, 1), read_adapter(engine)
    steps = [backend.bind(tree_layout(Tree.chain(2), 1), adapter) for _ in range(2)]
    first, second = (
        {name: value for name, value in step._inputs.items() if "lora" in name} for step in steps
    )
    assert len(first) == 8
    assert all(second[name] is value for name, value in first.items())
    none = backend.adapter_inputs(replace(adapter, lora={}))
    assert {0} == {np.prod(value.shape()) for name, value in none.items() if "lora" in name}
    assert len(backend._lora) == 1


def test_an_engine_reports_a_missing_library(
    built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    with pytest.raises(LibraryMissingError) as raised:
        Session.open(built)
    for part in (f"engine {built} is written in native", "no file", "make native", "--dialect ort"):
        assert part in str(raised.value)


def test_a_graph_of_another_dialect_is_not_accepted_as_native(
    tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_reference_operators(monkeypatch)
    other = copy_engine(tiny_engine, tmp_path / "other")
    edit_manifest(other, dialect="native", precision="int4")
    with pytest.raises(EngineError, match=r"bita\.operators is None"):
        Session.open(other)
