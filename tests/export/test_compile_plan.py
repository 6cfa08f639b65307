"""Tests of TensorRT-RTX plans of tiny models, which are built without a GPU."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from make_tiny_engine import CONFIG, write_plain_model
from speed import slow_but, thorough_but
from tiny_models import FAMILIES, write_tiny_model

from bita.errors import EngineError
from bita.export.architecture import read_architecture
from bita.export.dialects.graph_options import GraphOptions
from bita.export.dialects.step_graph import Seen, export_step_graph
from bita.export.onnx.weight_file import WeightFile
from bita.export.onnx.writer import FLOAT, GraphWriter
from bita.export.sources import open_checkpoint
from bita.export.tensorrt.compile_plan import PlanOptions, compile_plan

WIDE = {**CONFIG, "hidden_size": 64, "intermediate_size": 128}
OPTIONS = PlanOptions(
    "tensorrt_rtx",
    capacity=500,
    decode_rows=(2, 8),
    prefill_rows=67,
    prefill_outputs=8,
    num_masks=3,
    lora_rank=2,
    targets=("sm89",),
)
LAYERS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
WIDTHS = (64, 64, 64, 128)


def write_graph(
    model: Path, out: Path, precision: str, with_lora: bool, dialect: str = "standard"
) -> Path:
    checkpoint = open_checkpoint(str(model))
    ranges = {
        f"model.layers.{index}.{layer}": np.full(width, 4, np.float32)
        for index in range(2)
        for layer, width in zip(LAYERS, WIDTHS, strict=True)
    }
    out.mkdir()
    export_step_graph(
        checkpoint,
        read_architecture(checkpoint.config, 500),
        out,
        GraphOptions(500, precision, num_ranks=4, with_lora=with_lora, dialect=dialect),
        Seen(ranges={**ranges, "lm_head": np.full(64, 4, np.float32)}),
    )
    return out / "model.onnx"


@pytest.mark.compile
@pytest.mark.parametrize("dialect", slow_but(["standard", "plain"], "plain"))
@pytest.mark.parametrize("precision", thorough_but(["fp32", "fp16", "int8", "int4", "fp8"], "int8"))
def test_every_precision_builds(tmp_path: Path, precision: str, dialect: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = write_plain_model(tmp_path / "model", config=WIDE)
    graph = write_graph(model, tmp_path / "graph", precision, True, dialect)
    info = compile_plan(graph, tmp_path / "plan", OPTIONS)
    assert (tmp_path / "plan").stat().st_size > 100_000
    assert (info.targets, info.decode_rows) == (("sm89",), (2, 8))


@pytest.mark.thorough
@pytest.mark.compile
@pytest.mark.parametrize("dialect", ["standard", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_builds(tmp_path: Path, family: str, dialect: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("transformers")
    model = write_tiny_model(family, tmp_path / "model")
    graph = write_graph(model, tmp_path / "graph", "fp16", True, dialect)
    phases: list[tuple[str, int, int]] = []
    options = replace(OPTIONS, decode_rows=(8,))
    compile_plan(graph, tmp_path / "plan", options, lambda *phase: phases.append(phase))
    assert (tmp_path / "plan").stat().st_size > 100_000
    assert phases[0][1] == 0
    assert phases[-1][1] == phases[-1][2] > 0


@pytest.mark.compile
def test_unsupported_targets_are_reported(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = write_plain_model(tmp_path / "model", config=WIDE)
    graph = write_graph(model, tmp_path / "graph", "fp8", False)
    with pytest.raises(EngineError, match=r"target 'sm1' is not one of .*sm86"):
        compile_plan(graph, tmp_path / "plan", replace(OPTIONS, targets=("sm1",)))
    with pytest.raises(EngineError, match=r"cannot build for sm86: .*fp8"):
        compile_plan(graph, tmp_path / "plan", replace(OPTIONS, targets=("sm86",)))
    assert not (tmp_path / "plan").exists()


@pytest.mark.slow
@pytest.mark.compile
def test_the_same_body_builds_with_tensorrt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT needs a GPU, so TensorRT-RTX takes its name here, with its flags and timings."""
    monkeypatch.setitem(sys.modules, "tensorrt", pytest.importorskip("tensorrt_rtx"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = write_plain_model(tmp_path / "model", config=WIDE)
    graph = write_graph(model, tmp_path / "graph", "fp16", False, "plain")
    for _ in range(2):
        options = replace(OPTIONS, library="tensorrt", lora_rank=0)
        assert compile_plan(graph, tmp_path / "plan", options).library == "tensorrt"
    (timings,) = (tmp_path / "cache" / "bita-edge").iterdir()
    assert timings.name.endswith("-sm89.timing")
    assert (tmp_path / "plan").stat().st_size > 100_000


@pytest.mark.compile
@pytest.mark.parametrize("raised", [KeyboardInterrupt, OSError])
def test_a_build_ends_when_it_is_interrupted(tmp_path: Path, raised: type[BaseException]) -> None:
    """An exception raised in the library's callback would otherwise be lost."""
    pytest.importorskip("tensorrt_rtx")
    model = write_plain_model(tmp_path / "model", config=WIDE)
    graph = write_graph(model, tmp_path / "graph", "fp16", False)
    calls = []

    def interrupt(phase: str, done: int, total: int) -> None:
        calls.append(done)
        if done:
            raise raised

    with pytest.raises(raised):
        compile_plan(graph, tmp_path / "plan", replace(OPTIONS, lora_rank=0), interrupt)
    assert calls == [0, 1]
    assert not (tmp_path / "plan").exists()


@pytest.mark.compile
def test_an_operator_without_a_kernel_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    with WeightFile(tmp_path / "weights") as weights:
        writer = GraphWriter(weights, {"": 24})
        values = writer.op("Det", writer.input("values", FLOAT, (4, 4)))
        writer.output("out", values, FLOAT, ())
        writer.save(tmp_path / "det.onnx", "det")
    fault = r"cannot read .*det.onnx; try --dialect plain: node Det_0 \(Det\): "
    with pytest.raises(EngineError, match=fault):
        compile_plan(tmp_path / "det.onnx", tmp_path / "plan", OPTIONS)


@pytest.mark.compile
def test_caches_that_would_be_copied_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    with WeightFile(tmp_path / "weights") as weights:
        writer = GraphWriter(weights, {"": 24})
        past = writer.input("past.0.key", FLOAT, (1, 2, 16, 4))
        writer.output("present.0.key", writer.op("Neg", past), FLOAT, (1, 2, 16, 4))
        writer.save(tmp_path / "copied.onnx", "copied")
    with pytest.raises(EngineError, match=r"would update only 0 of 1 caches in place"):
        compile_plan(tmp_path / "copied.onnx", tmp_path / "plan", OPTIONS)


@pytest.mark.parametrize(
    ("library", "message"),
    [
        ("tensorrt", "not installed .*apt install python3-libnvinfer"),
        ("no_such_library", "'no_such_library' is not one of the libraries tensorrt, tensorrt_rtx"),
    ],
)
def test_a_missing_library_is_reported_with_the_install_command(
    tmp_path: Path, library: str, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        compile_plan(tmp_path / "model.onnx", tmp_path / "plan", replace(OPTIONS, library=library))


def test_profiles_have_the_rows_of_trees_and_of_prefill() -> None:
    prefill, narrow, wide = replace(OPTIONS, lora_rank=0, prefill_outputs=9).profiles()
    shared = {"M": (3, 3, 3), "r": (0, 0, 0), "S": (256, 500, 500)}
    assert prefill == {**shared, "Q": (1, 67, 67), "R": (1, 4, 9)}
    assert narrow == {**shared, "Q": (2, 2, 2), "R": (2, 2, 2)}
    assert wide == {**shared, "Q": (8, 8, 8), "R": (8, 8, 8)}


def test_a_small_cache_has_one_size() -> None:
    assert {p["S"] for p in replace(OPTIONS, capacity=100).profiles()} == {(100, 100, 100)}
