"""The standard dialect's step graph equals the ort dialect's; quantized precisions are close."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from make_tiny_engine import CONFIG, write_plain_model
from speed import slow_but
from tiny_models import FAMILIES, write_tiny_model

from bita.adapter import Adapter, random_adapter
from bita.calibration.probe import Probe
from bita.calibration.quality import Scored, measure_quality
from bita.calibration.ranges import collect_ranges
from bita.engine import Engine, open_engine
from bita.errors import ModelError
from bita.export.architecture import read_architecture
from bita.export.build import BuildOptions, build_engine, check_build, weight_bytes
from bita.export.checkpoint import Checkpoint
from bita.export.dialects.step_graph import Seen
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.lora import site_sizes, starting_lora
from bita.runtime.backends.layout import prefill_layout, tree_layout
from bita.runtime.backends.ort_backend import OrtBackend
from bita.runtime.session import Session
from bita.tree import Tree

CAPACITY = 160
TREE = Tree.from_paths([(1,), (1, 1), (1, 1, 1), (2,), (1, 2), (2, 1), (4,)], num_masks=3)
WIDE = {**CONFIG, "hidden_size": 64, "intermediate_size": 128}  # whole blocks of int4
TEXTS = [[5, 9, 200, 31, 7, 88], [3, 4, *range(40, 60)], list(range(10, 260))]
# Relative errors of the first linear layer's products and of the logits. Consecutive random layers
# amplify an error (MatMulNBits' int4 gives 0.61 in the logits); unrelated logits give 1.4.
WORST_ERRORS = {"fp16": (1e-3, 0.01), "int8": (0.02, 0.2), "fp8": (0.05, 0.4), "int4": (0.13, 0.8)}


def tree_logits(engine: Engine, adapter: Adapter, drafts: int = 0) -> np.ndarray:
    """Return the logits of all rows of TREE after a text of 60 tokens read in pieces of 25."""
    rng = np.random.default_rng(1)
    text = rng.integers(3, 300, 60)
    backend = OrtBackend(engine, num_threads=1)
    backend.cache.start(adapter)
    for start in range(0, len(text), 25):
        piece = text[start : start + 25]
        step = backend.bind(prefill_layout(len(piece), 0, 2), adapter)
        step.token_ids[0, : len(piece)] = piece
        step.run()
        backend.cache.length += len(piece)
    step = backend.bind(tree_layout(TREE, 2), adapter, with_logits=True)
    tokens = np.random.default_rng(drafts).integers(3, 300, TREE.num_nodes)
    step.token_ids[0, : TREE.num_nodes] = [7, *tokens[1:]]
    step.run()
    assert step.logits is not None
    np.testing.assert_array_equal(step.logits.argmax(-1), step.top_ids[:, 0])
    return step.logits.copy()


@pytest.mark.parametrize("family", slow_but(FAMILIES, "llama", "gemma3_text"))
def test_logits_equal_those_of_the_ort_dialect(family: str, tmp_path: Path) -> None:
    """Compare nodes and masks after a cached text, with windows, prefix, soft caps and LoRA."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    checkpoint = open_checkpoint(str(write_tiny_model(family, tmp_path / "model")))
    identity = identify(checkpoint)
    lora = starting_lora(site_sizes(checkpoint), identity.num_layers, 3, seed=0)
    adapter = random_adapter(identity, 3, 5, scale=0.5, lora_like=lora)
    assert_equal_logits(checkpoint, adapter, tmp_path)


def test_logits_are_equal_if_half_of_a_head_rotates(tmp_path: Path) -> None:
    config = {**CONFIG, "model_type": "phi3", "head_dim": 32, "partial_rotary_factor": 0.5}
    checkpoint = open_checkpoint(str(write_plain_model(tmp_path / "model", config=config)))
    adapter = random_adapter(identify(checkpoint), 3, 5, scale=0.5)
    assert_equal_logits(checkpoint, adapter, tmp_path)


def assert_equal_logits(checkpoint: Checkpoint, adapter: Adapter, folder: Path) -> None:
    found = {}
    for dialect in ("ort", "standard", "plain"):
        options = BuildOptions("fp32", capacity=CAPACITY, tree=TREE, dialect=dialect)
        build_engine(check_build(checkpoint, adapter, folder / dialect, options))
        found[dialect] = tree_logits(open_engine(folder / dialect), adapter)
    assert found["ort"].std() > 1  # otherwise a tolerance in logits proves nothing
    np.testing.assert_allclose(found["standard"], found["ort"], atol=2e-4, rtol=0)
    np.testing.assert_allclose(found["plain"], found["ort"], atol=2e-4, rtol=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    model = write_plain_model(tmp_path_factory.mktemp("wide"), config=WIDE)
    return open_checkpoint(str(model))


@pytest.fixture(scope="module")
def adapter(checkpoint: Checkpoint) -> Adapter:
    return random_adapter(identify(checkpoint), num_masks=3, prefix_length=2, scale=0.4)


@pytest.fixture(scope="module")
def engines(
    checkpoint: Checkpoint, adapter: Adapter, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Engine]:
    """Build an engine of every precision, and "reference" in float32 with the ort dialect."""
    folder = tmp_path_factory.mktemp("engines")
    options = BuildOptions("fp32", capacity=300)
    build_engine(check_build(checkpoint, adapter, folder / "reference", options))
    reference = open_engine(folder / "reference")
    seen = Seen(ranges=collect_ranges(reference, TEXTS, folder / "ranges"))
    for precision in ("fp32", *WORST_ERRORS):
        options = BuildOptions(precision, capacity=300, dialect="standard")
        build_engine(check_build(checkpoint, adapter, folder / precision, options), seen=seen)
    names = ("reference", "fp32", *WORST_ERRORS)
    return {name: open_engine(folder / name) for name in names}


def test_the_text_equals_that_of_the_ort_dialect(engines: dict[str, Engine]) -> None:
    texts = [
        Session.open(engines[name].path).generate("The quick brown fox", max_new_tokens=40).text
        for name in ("reference", "fp32")
    ]
    assert len(texts[0]) > 20
    assert texts[0] == texts[1]


def relative_error(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("precision", WORST_ERRORS)
def test_quantized_logits_have_the_expected_errors(
    engines: dict[str, Engine], adapter: Adapter, precision: str
) -> None:
    name = "model.layers.0.self_attn.qkv_proj.output"
    first, logits = [], []
    for engine in (engines["reference"], engines[precision]):
        first.append(next(Probe(engine, [name]).read(TEXTS[2]))[name].astype(np.float32))
        logits.append(tree_logits(engine, adapter))
    errors = relative_error(*first), relative_error(*logits)
    assert np.all(np.array(errors) < WORST_ERRORS[precision])
    assert np.all(np.array(errors) > np.array(WORST_ERRORS[precision]) / 5)


def test_errors_of_layers_can_be_measured(engines: dict[str, Engine]) -> None:
    """This dialect has the values that calibration reads, with the same names and types."""
    quality = measure_quality(engines["reference"], engines["fp16"], [Scored(tuple(TEXTS[2]), 1)])
    assert 0 < quality.worst_layer_error < 0.05
    assert quality.kl < 1e-3


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_rows_do_not_depend_on_each_other(
    engines: dict[str, Engine], adapter: Adapter, precision: str
) -> None:
    """Activation scales are static, so other drafts and masks do not change a bit of the root."""
    loud = random_adapter(adapter.identity, 3, 2, scale=9.0, seed=7)
    before = tree_logits(engines[precision], adapter)
    after = tree_logits(engines[precision], loud, drafts=5)
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1:] - after[1:]).max() > 0.1


@pytest.mark.parametrize("precision", ["fp32", *WORST_ERRORS])
def test_the_graph_meets_the_requirements_of_tensorrt(
    engines: dict[str, Engine], precision: str
) -> None:
    model = ir.load(engines[precision].file("model.onnx"))
    assert dict(model.graph.opset_imports) == {"": 24}
    assert {node.domain for node in model.graph} == {""}
    for node in model.graph:
        if node.op_type == "Attention":
            assert (len(node.inputs), len(node.outputs)) == (4, 1)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zeros = node.inputs[1], node.inputs[2:]
            assert scale is not None
            assert scale.const_value is not None
            assert np.all(scale.const_value.numpy() > 0)
            for zero in zeros:
                assert zero is not None
                assert zero.const_value is not None
                assert not zero.const_value.numpy().astype(np.float32)
    cached = [
        value for value in model.graph.inputs if value.name and value.name.startswith("past.")
    ]
    expected = ir.DataType.FLOAT if precision == "fp32" else ir.DataType.FLOAT16
    assert {value.dtype for value in cached} == {expected}
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(str(engines[precision].file("model.onnx")))


@pytest.mark.parametrize(("precision", "num_quantized"), [("int8", 7), ("fp8", 9), ("int4", 0)])
def test_the_expected_activations_are_quantized(
    engines: dict[str, Engine], precision: str, num_quantized: int
) -> None:
    """There are 4 linear layers in each of 2 layers, and the head; int8 skips down projections."""
    model = ir.load(engines[precision].file("model.onnx"))
    operators = [node.op_type for node in model.graph]
    assert operators.count("QuantizeLinear") == num_quantized
    assert operators.count("DequantizeLinear") == 9 + num_quantized


@pytest.mark.parametrize("precision", WORST_ERRORS)
def test_the_size_is_estimated(engines: dict[str, Engine], precision: str) -> None:
    written = engines[precision].file("model.onnx.data").stat().st_size
    padding = 4096 * 60  # tensors start on pages, and these are small
    expected = weight_bytes(read_architecture(WIDE, 300), precision, "standard")
    assert expected * 0.85 < written < expected * 1.15 + padding


def test_ranges_are_the_largest_inputs(engines: dict[str, Engine], tmp_path: Path) -> None:
    label = "model.layers.1.mlp.down_proj"
    progress: list[tuple[int, int]] = []
    ranges = collect_ranges(
        engines["reference"], TEXTS, tmp_path, lambda done, total: progress.append((done, total))
    )
    assert set(ranges) >= {label, "lm_head", "model.layers.0.self_attn.qkv_proj"}
    assert progress == [(0, 3), (1, 3), (2, 3), (3, 3)]
    probe = Probe(engines["reference"], [f"{label}.input"])
    rows = [piece[f"{label}.input"].copy() for text in TEXTS for piece in probe.read(text)]
    np.testing.assert_array_equal(ranges[label], np.abs(np.concatenate(rows)).max(0))


def test_existing_ranges_are_kept(engines: dict[str, Engine], tmp_path: Path) -> None:
    ranges = collect_ranges(engines["reference"], TEXTS[:1], tmp_path)
    ranges.save("lm_head", np.zeros(64, np.float32))
    (tmp_path / "model.layers.0.mlp.down_proj.npy").unlink()
    again = collect_ranges(engines["reference"], TEXTS[:1], tmp_path)
    assert not again["lm_head"].any()
    assert again["model.layers.0.mlp.down_proj"].all()


def test_missing_requirements_of_a_precision_are_reported(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    options = BuildOptions("int8", capacity=64, dialect="standard")
    with pytest.raises(ModelError, match=r"int8 needs the input range of .*qkv_proj"):
        build_engine(check_build(checkpoint, None, tmp_path / "int8", options))
    narrow = open_checkpoint(str(write_plain_model(tmp_path / "narrow")))
    options = BuildOptions("int4", capacity=64, dialect="standard")
    with pytest.raises(ModelError, match=r"32 inputs, not a multiple of 64, .*; choose"):
        build_engine(check_build(narrow, None, tmp_path / "int4", options))


# ONNX-TensorRT 8.4 supports all of these.
PLAIN_OPERATORS = {
    *("Add", "And", "Cast", "Concat", "DequantizeLinear", "Div", "Equal", "Gather"),
    *("GatherElements", "GatherND", "Gemm", "GreaterOrEqual", "Less", "MatMul", "Max", "Min"),
    *("Mul", "Not", "Or", "QuantizeLinear", "ReduceMax", "ReduceMean", "Reshape", "Shape"),
    *("Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "TopK"),
    *("Transpose", "Unsqueeze", "Where"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_dialect_has_only_old_operators(family: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    checkpoint = open_checkpoint(str(write_tiny_model(family, tmp_path / "model")))
    options = BuildOptions("fp16", capacity=CAPACITY, dialect="plain")
    build_engine(check_build(checkpoint, None, tmp_path / "engine", options))
    graph = ir.load(tmp_path / "engine" / "model.onnx")
    assert dict(graph.opset_imports) == {"": 21}
    assert {node.op_type for node in graph.graph} <= PLAIN_OPERATORS
