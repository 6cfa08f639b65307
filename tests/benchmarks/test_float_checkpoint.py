"""Tests of benchmarks/float_checkpoint.py: exact rewritings, and the same blocks as a build."""

from pathlib import Path

import numpy as np
import pytest
from block_ways import WAYS, output_errors, round_layers, sites, symmetric
from float_checkpoint import judge
from float_rewriting import ArrayCheckpoint, BlocksCheckpoint, read_all, rewrite
from make_tiny_engine import CONFIG, write_plain_model

from bita.calibration.quality import Scored
from bita.engine import WEIGHTS_FILE, Engine, open_engine
from bita.errors import ModelError
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.checkpoint import Checkpoint
from bita.export.dialects.step_graph import NOTHING_SEEN, Seen
from bita.export.quantization.blocks import dequantized
from bita.export.quantization.gptq import ErrorSpread, Moments
from bita.export.quantization.int4 import Int4Grid, dequantize_int4, quantize_int4
from bita.export.sources import open_checkpoint

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(write_plain_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def moments(checkpoint: Checkpoint) -> Moments:
    """Return the second moments of 300 rows of correlated inputs."""
    found = {}
    for label, names in sites(checkpoint.config):
        width = checkpoint.shape(names[0])[1]
        rows = RNG.standard_normal((300, width)) @ RNG.standard_normal((width, width))
        found[label] = (rows.T @ rows).astype(np.float32)
    return found


def build(checkpoint: Checkpoint, out: Path, options: BuildOptions, seen: Seen) -> Engine:
    build_engine(check_build(checkpoint, None, out, options), seen=seen)
    return open_engine(out)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_rewriting_does_not_change_the_logits(tmp_path: Path, family: str) -> None:
    more = {"query_pre_attn_scalar": 16, "sliding_window": 64} if family == "gemma2" else {}
    source = family_checkpoint(tmp_path, family, **more)
    tensors = read_all(source)
    before = {name: weight.copy() for name, weight in tensors.items()}
    rewrite(tensors, source.config, seed=1)
    assert [n for n in before if (tensors[n] == before[n]).mean() > 0.2] == []
    options = BuildOptions("fp32", capacity=256)
    reference, rewritten = (
        build(each, tmp_path / name, options, NOTHING_SEEN)
        for name, each in (("a", source), ("b", ArrayCheckpoint(source, tensors)))
    )
    texts = [Scored(tuple(RNG.integers(5, 200, 40).tolist()), 8) for _ in range(8)]
    found = judge(reference, rewritten, texts)
    assert found["positions"] == 8 * 32
    assert found["kl"] < 1e-6
    assert found["same_greedy"] == 1.0


def family_checkpoint(folder: Path, family: str, **fields: object) -> Checkpoint:
    config = {**CONFIG, "model_type": family, **fields}
    if family == "gemma2":
        config["hidden_activation"] = "gelu_pytorch_tanh"
    return open_checkpoint(str(write_plain_model(folder / "model", config=config)))


def test_one_rewriting_alone_leaves_the_other_tensors_unchanged(checkpoint: Checkpoint) -> None:
    before, tensors = read_all(checkpoint), read_all(checkpoint)
    rewrite(tensors, checkpoint.config, 0, ["rotate"])
    changed = {n.split(".")[-2] for n in before if not np.array_equal(before[n], tensors[n])}
    assert changed == {"v_proj", "o_proj"}
    with pytest.raises(ModelError, match="no rewriting 'turn'; there are fold, rotate, reorder"):
        rewrite(tensors, checkpoint.config, 0, ["rotate", "turn"])


def test_unknown_families_and_biases_are_refused(checkpoint: Checkpoint) -> None:
    tensors = read_all(checkpoint)
    with pytest.raises(ModelError, match="no rewriting is known for the family phi3"):
        rewrite(tensors, {**checkpoint.config, "model_type": "phi3"}, 0)
    tensors["model.layers.0.self_attn.v_proj.bias"] = np.ones(4, np.float32)
    with pytest.raises(ModelError, match=r"no rewriting is known for the bias .*v_proj\.bias"):
        rewrite(tensors, checkpoint.config, 0)


@pytest.mark.parametrize("name", ["nearest, minima", "gptq, minima"])
def test_rounding_with_minima_equals_that_of_a_build(
    tmp_path: Path, checkpoint: Checkpoint, moments: Moments, name: str
) -> None:
    options = BuildOptions(dialect="native")
    way = WAYS[name]
    seen = Seen(moments=moments) if way.sees else NOTHING_SEEN
    expected = build(checkpoint, tmp_path / "expected", options, seen)
    blocks = round_layers(checkpoint, way, moments)
    kept = BlocksCheckpoint(checkpoint, read_all(checkpoint), blocks)
    found = build(kept, tmp_path / "found", options, NOTHING_SEEN)
    assert found.files[WEIGHTS_FILE] == expected.files[WEIGHTS_FILE]


def test_symmetric_blocks_equal_those_of_the_other_dialects(moments: Moments) -> None:
    rows = RNG.standard_normal((8, 64)).astype(np.float32)
    grid = Int4Grid(scale_type=np.float16)
    np.testing.assert_array_equal(
        dequantized(symmetric(rows, None)), dequantize_int4(*quantize_int4(rows, grid), 64)
    )
    spread = ErrorSpread.of(moments["model.layers.0.mlp.down_proj"], grid)
    assert np.abs(dequantized(symmetric(rows, spread)) - rows).max() < 1.0
    assert WAYS["8 bits"].round(rows, None).bits == 8


def test_output_errors_from_moments_equal_those_from_the_inputs(checkpoint: Checkpoint) -> None:
    inputs = {
        label: RNG.standard_normal((50, checkpoint.shape(names[0])[1])).astype(np.float32)
        for label, names in sites(checkpoint.config)
    }
    sums = {label: rows.T @ rows for label, rows in inputs.items()}
    blocks = round_layers(checkpoint, WAYS["nearest, symmetric"], {})
    squares = []
    for index in range(checkpoint.config["num_hidden_layers"]):
        name = f"model.layers.{index}.mlp.down_proj"
        weights, rows = checkpoint.read(f"{name}.weight"), inputs[name]
        error = rows @ (dequantized(blocks[f"{name}.weight"]) - weights).T
        squares.append(np.square(error).sum() / np.square(rows @ weights.T).sum())
    found = output_errors(checkpoint, blocks, sums)
    assert found["down_proj"] == pytest.approx(np.sqrt(np.mean(squares)), abs=1e-5)
    assert {*found} == {f"{kind}_proj" for kind in ("q", "k", "v", "o", "gate", "up", "down")}
