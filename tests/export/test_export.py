"""Tests of the export without torch: quantization, top tokens, refusals, the weight file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from make_tiny_engine import CONFIG, write_plain_model

from bita.dialect_spec import ORT
from bita.errors import EngineError, ModelError
from bita.export.architecture import read_architecture
from bita.export.build import (
    BuildOptions,
    build_engine,
    check_build,
    check_rotary_widths,
    weight_bytes,
)
from bita.export.dialects.decoder import check_tensors
from bita.export.dialects.ort_dialect import OPSETS
from bita.export.onnx.top_tokens import block_width, top_tokens
from bita.export.onnx.weight_file import WeightFile
from bita.export.onnx.writer import FLOAT, INT64, GraphWriter
from bita.export.quantization.int4 import dequantize_int4, quantize_int4
from bita.export.rope import make_rope
from bita.export.sources import open_checkpoint
from bita.tree import Tree


@pytest.mark.parametrize("width", [32, 64, 80])
def test_int4_rounds_closely_and_keeps_values_on_its_grid(width: int) -> None:
    rows = np.random.default_rng(0).standard_normal((50, width)).astype(np.float32)
    packed, scales = quantize_int4(rows)
    assert packed.shape == (50, -(-width // 32), 16)
    near = dequantize_int4(packed, scales, width)
    blocks = np.pad(np.abs(rows), ((0, 0), (0, -width % 32))).reshape(50, -1, 32)
    bound = np.repeat(blocks.max(-1), 32, axis=1)[:, :width] / 8
    assert (np.abs(near - rows) <= bound * 1.001).all()
    again, _ = quantize_int4(near)
    np.testing.assert_array_equal(again, packed)


def test_int4_of_zeros_is_zero() -> None:
    packed, scales = quantize_int4(np.zeros((3, 32), np.float32))
    np.testing.assert_array_equal(dequantize_int4(packed, scales, 32), 0)


@pytest.mark.parametrize(("vocab_size", "num_ranks"), [(320, 4), (49152, 16), (997, 5), (60, 16)])
def test_top_tokens_equal_a_full_sort(tmp_path: Path, vocab_size: int, num_ranks: int) -> None:
    with WeightFile(tmp_path / "weights") as weights:
        graph = GraphWriter(weights, OPSETS)
        logits = graph.input("logits", FLOAT, ("R", vocab_size))
        values, ids = top_tokens(graph, logits, vocab_size, num_ranks)
        graph.output("values", values, FLOAT, ("R", num_ranks))
        graph.output("ids", ids, INT64, ("R", num_ranks))
        graph.save(tmp_path / "top.onnx", "top")
    session = ort.InferenceSession(tmp_path / "top.onnx")
    rng = np.random.default_rng(0)
    distinct = rng.permuted(np.tile(np.arange(vocab_size, dtype=np.float32), (7, 1)), axis=1)
    found, ids = session.run(["values", "ids"], {"logits": distinct})
    expected = np.argsort(-distinct, axis=1, kind="stable")[:, :num_ranks]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(found, np.take_along_axis(distinct, expected, 1))
    tied = rng.integers(0, 3, (40, vocab_size)).astype(np.float32)
    _, ids = session.run(["values", "ids"], {"logits": tied})
    np.testing.assert_array_equal(ids[:, 0], tied.argmax(1))  # the lowest id wins a tie


def test_block_width_divides_or_is_none() -> None:
    assert 49152 % (block_width(49152, 16) or 0) == 0
    assert block_width(997, 5) is None  # a prime has no blocks


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"model_type": "mamba"}, ["model_type 'mamba'", "supported: llama, mistral"]),
        ({"model_type": "mamba", "num_experts": 8}, ["2 faults", "num_experts = 8 is"]),
        (
            {"hidden_size": None, "rms_norm_eps": True},
            ["hidden_size is None", "rms_norm_eps is True"],
        ),
        ({"hidden_act": "relu", "head_dim": 20}, ["'relu'", "head_dim 20", "2 faults"]),
        ({"rope_scaling": {"rope_type": "ntk"}}, ["rope_type 'ntk'"]),
        ({"rope_scaling": {"rope_type": "llama3"}}, ["needs 'factor'"]),
        ({"num_key_value_heads": 3}, ["4 attention heads are not a multiple of 3"]),
        ({"max_position_embeddings": 64}, ["capacity 128 exceeds", "CAPACITY=64"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config"]),
        ({"layer_types": ["full_attention"]}, ["layer_types has 1 entries for 2 layers"]),
    ],
)
def test_unsupported_configurations_are_refused(changes: dict, messages: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        read_architecture({**CONFIG, **changes}, capacity=128)
    for message in messages:
        assert message in str(caught.value)


def test_missing_unused_and_misshaped_tensors_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = write_plain_model(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.gate.weight"] = np.zeros((4, 32), np.float32)
    tensors["model.norm.weight"] = np.zeros(31, np.float32)
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, path)
    checkpoint = open_checkpoint(str(tmp_path))
    with pytest.raises(ModelError) as caught:
        check_tensors(checkpoint, read_architecture(checkpoint.config, 128))
    message = str(caught.value)
    assert "3 faults" in message
    assert "model.layers.0.mlp.gate.weight belongs to a feature that is not supported" in message
    assert "model.norm.weight has shape (31,), expected (32,)" in message
    assert "model.layers.1.self_attn.q_proj.weight is missing" in message


def test_yarn_and_longrope_frequencies_equal_a_computation_by_hand() -> None:
    plain = np.array(make_rope({"rope_theta": 1e4}, 64, 4096, 2048).inv_freq)
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
    }
    rope = make_rope(yarn, 64, 4096, 2048)
    assert rope.amplitude == pytest.approx(0.1 * np.log(4) + 1)
    ratio = np.array(rope.inv_freq) / plain
    assert ratio[0] == 1  # fast dimensions keep their frequency
    assert ratio[-1] == pytest.approx(0.25)  # slow ones are interpolated
    long = {**yarn, "rope_type": "longrope", "short_factor": [2.0] * 32, "long_factor": [9.0] * 32}
    np.testing.assert_allclose(make_rope(long, 64, 4096, 1024).inv_freq, plain / 2)
    with pytest.raises(ValueError, match="capacity of at most 1024"):
        make_rope(long, 64, 4096, 2048)


def test_the_weight_file_counts_bytes(tmp_path: Path) -> None:
    written: list[int] = []
    with WeightFile(tmp_path / "w", written.append) as weights:
        tensor = weights.write("a", FLOAT, (2, 3), iter([np.ones(3, np.float32)] * 2))
        other = weights.write("b", FLOAT, (1,), [np.zeros(1, np.float32)])
        with pytest.raises(ValueError, match=r"c: wrote 4 bytes for shape \(2,\)"):
            weights.write("c", FLOAT, (2,), [np.zeros(1, np.float32)])
    assert (tensor.offset, tensor.length, other.offset) == (0, 24, 4096)
    assert written == [12, 12, 4, 4]
    np.testing.assert_array_equal(tensor.numpy(), np.ones((2, 3)))


def test_the_graph_passes_the_onnx_checker(tiny_engine: Path) -> None:
    model = ir.load(tiny_engine / "model.onnx")
    assert dict(model.graph.opset_imports) == OPSETS
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(str(tiny_engine / "model.onnx"))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_a_build_estimates_its_size(tmp_path: Path, precision: str) -> None:
    checkpoint = open_checkpoint(str(write_plain_model(tmp_path / "model")))
    expected: list[int] = []
    written: list[int] = []
    options = BuildOptions(precision=precision, capacity=64)
    manifest = build_engine(
        check_build(checkpoint, None, tmp_path / "engine", options), expected.append, written.append
    )
    assert (manifest.precision, manifest.capacity, manifest.num_masks) == (precision, 64, 3)
    assert sum(written) == pytest.approx(sum(expected), rel=0.15)  # small tables are not estimated
    assert weight_bytes(read_architecture(CONFIG, 64), precision) == sum(expected)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_embedding_table_is_rounded_closely_to_8_bits(tmp_path: Path, precision: str) -> None:
    checkpoint = open_checkpoint(str(write_plain_model(tmp_path / "model")))
    table = checkpoint.read("model.embed_tokens.weight")
    options = BuildOptions(precision=precision, capacity=64)
    build_engine(check_build(checkpoint, None, tmp_path / "engine", options))
    weights = ir.load(tmp_path / "engine" / "model.onnx").graph.initializers
    stored: dict[str, np.ndarray] = {}
    for name, value in weights.items():
        assert value.const_value is not None
        stored[name] = value.const_value.numpy()
    assert "model.embed_tokens.weight" not in stored
    scales = stored["model.embed_tokens.weight.scales"]
    assert scales.shape == (len(table), 1)
    rows = stored["model.embed_tokens.weight_int8"] * scales
    assert (np.abs(rows - table) <= 0.501 * scales).all()
    np.testing.assert_allclose(127 * scales[:, 0], np.abs(table).max(1), rtol=1e-6)


def test_rotary_widths_that_attention_does_not_support_are_refused() -> None:
    architecture = read_architecture(CONFIG, 64)
    check_rotary_widths(architecture, ORT.rotary_unit)
    first = architecture.layers[0]
    assert first.rope is not None
    half = replace(first, rope=replace(first.rope, inv_freq=first.rope.inv_freq[:4]))
    with pytest.raises(ModelError, match=r"rotate 8 values of a head.*--dialect standard"):
        check_rotary_widths(replace(architecture, layers=(first, half)), ORT.rotary_unit)


def test_build_options_are_checked_together(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_plain_model(tmp_path / "model")))
    options = BuildOptions(precision="int3", mode="fast", backend="tpu", num_ranks=1)
    with pytest.raises(EngineError, match=r"(?s)4 faults.*'int3'.*'fast'.*'tpu'.*num_ranks 1"):
        build_engine(check_build(checkpoint, None, tmp_path / "engine", options))
    options = BuildOptions(capacity=20, tree=Tree.triangle((17,), num_masks=4))
    with pytest.raises(EngineError, match=r"(?s)3 faults.*4 masks on a node.*rank 17.*90 rows"):
        build_engine(check_build(checkpoint, None, tmp_path / "engine", options))
    assert not (tmp_path / "engine").exists()


def test_a_failed_build_keeps_the_old_engine(tmp_path: Path) -> None:
    model = write_plain_model(tmp_path / "model")
    out = tmp_path / "engine"
    build_engine(check_build(open_checkpoint(str(model)), None, out, BuildOptions(capacity=64)))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    checkpoint = open_checkpoint(str(model))

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(check_build(checkpoint, None, out, BuildOptions(capacity=32)), on_write=fail)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_is_not_an_engine_is_left_alone(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_plain_model(tmp_path / "model")))
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "letter.txt").write_text("dear")
    with pytest.raises(EngineError, match="exists and is not an engine"):
        build_engine(check_build(checkpoint, None, precious, BuildOptions(capacity=64)))
    assert (precious / "letter.txt").read_text() == "dear"


def test_the_manifest_has_sizes_and_hashes(tiny_engine: Path) -> None:
    data = json.loads((tiny_engine / "manifest.json").read_text())
    assert data["format"] == "bita-engine"
    assert {"bytes", "sha256"} == data["files"]["model.onnx.data"].keys()
