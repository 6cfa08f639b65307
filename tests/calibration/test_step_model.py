"""T(q) modelled for other processors is checked by hand-computed figures and limiting cases."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from native_engines import FEATURES, native_engine, require_library

from bita.calibration import step_model
from bita.calibration.arm_cycles import CORTEX_A76
from bita.calibration.devices import CPU_DEVICES, modelled_latency
from bita.calibration.kernel_cycles import KernelCycles, row_groups
from bita.calibration.latency import Latency
from bita.calibration.step_model import (
    Processor,
    Product,
    StepShape,
    attention_cycles,
    linear_cycles,
    overlapped,
    step_ms,
    step_shape,
)
from bita.cli.main import main
from bita.engine import Engine, open_engine
from bita.errors import EngineError

CYCLES = KernelCycles(
    processor="made up",
    linear={"int4": (10.0, 16.0, 21.0), "int8": (20.0, 30.0, 40.0)},
    scores=(1.0, 1.5),
    values=(2.0, 2.5),
    **dict.fromkeys(("weigh", "mean", "turn", "add", "squares"), 0.0),
    **dict.fromkeys(("rank", "scale", "quantize", "gate"), 0.0),
)
SHAPE = StepShape(
    products=(Product(4, 2, 4, False), Product(10, 2, 8, False)),
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    hidden_size=64,
    inner_size=128,
    vocab_size=160,
)


def test_rows_are_grouped_as_in_the_kernels() -> None:
    assert row_groups(8, 8) == [8]
    assert row_groups(9, 8) == [7, 2]
    assert row_groups(21, 8) == [8, 8, 5]
    assert CYCLES.block("int4", 4) == 16 + 16  # two groups of two rows
    assert CYCLES.block("int4", 5) == 21 + 16


def test_linear_layers_equal_a_computation_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_model, "TILE_CYCLES", 7.0)
    assert linear_cycles(SHAPE, CYCLES, 1) == 4 * (2 * 10 + 7) + 10 * (2 * 20 + 7)
    assert linear_cycles(SHAPE, CYCLES, 4) == 4 * (2 * 32 + 14) + 10 * (2 * 60 + 14)
    assert SHAPE.weight_bytes == 8 * (256 + 32) + 20 * (512 + 32)


def test_attention_equals_a_computation_by_hand() -> None:
    # one row: two queries, 33 slots in 3 pages; 32 dimensions are two registers of sixteen
    assert attention_cycles(SHAPE, CYCLES, 1, 32) == 2 * (3 * 32 * 1.5 + 33 * 2 * 2.5)
    # four rows: eight queries, two at a time, 36 slots
    assert attention_cycles(SHAPE, CYCLES, 4, 32) == 2 * 4 * (3 * 32 * 1.5 + 36 * 2 * 2.5)
    # seven rows: twelve queries of six rows, then two queries of a row that sees one more slot
    first, second = 3 * 32 * 1.5 + 38 * 2 * 2.5, 3 * 32 * 1.5 + 39 * 2 * 2.5
    assert attention_cycles(SHAPE, CYCLES, 7, 32) == 2 * (6 * first + second)


def test_memory_and_arithmetic_overlap() -> None:
    assert overlapped(0.0, 0.0) == 0.0
    assert overlapped(2.0, 0.0) == 2.0
    assert 2.0 < overlapped(2.0, 1.0) < 3.0
    assert overlapped(1.0, 2.0) == overlapped(2.0, 1.0)


def test_slow_memory_hides_the_cost_of_rows_and_fast_memory_does_not() -> None:
    slow = Processor(CYCLES, 4, 1.0, 0.001)
    weights_ms = 1000 * SHAPE.weight_bytes / 1e6
    assert step_ms(SHAPE, slow, 1, 0) == pytest.approx(weights_ms, rel=0.01)
    assert step_ms(SHAPE, slow, 8, 0) == pytest.approx(weights_ms, rel=0.01)
    fast = Processor(CORTEX_A76, 4, 1.0, 1e6)
    large = replace(SHAPE, products=(Product(1000, 100, 8, False),))
    assert step_ms(large, fast, 8, 0) > 4 * step_ms(large, fast, 1, 0)


@pytest.mark.parametrize("cores", [1, 4])
def test_time_rises_with_rows_and_text_and_falls_with_cores(cores: int) -> None:
    processor = Processor(CORTEX_A76, cores, 2.4, 12)
    times = [step_ms(SHAPE, processor, rows, 100) for rows in range(1, 40)]
    assert all(a < b for a, b in pairwise(times))
    assert step_ms(SHAPE, processor, 4, 1000) > step_ms(SHAPE, processor, 4, 100)
    more = replace(processor, cores=2 * cores)
    assert step_ms(SHAPE, more, 8, 100) < step_ms(SHAPE, processor, 8, 100)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    require_library()
    return native_engine(FEATURES["llama3"], tmp_path_factory.mktemp("made"))


def test_the_shape_is_read_from_the_graph(engine: Engine) -> None:
    shape, manifest = step_shape(engine), engine.manifest
    assert len(shape.products) == 4 * manifest.num_layers + 1
    assert {product.bits for product in shape.products} <= {4, 8}
    assert shape.num_heads % shape.num_kv_heads == 0
    output = shape.products[-1]
    assert 16 * output.tiles >= manifest.vocab_size > 16 * (output.tiles - 1)
    assert 32 * output.blocks >= manifest.hidden_size > 32 * (output.blocks - 1)


@pytest.mark.parametrize("name", sorted(CPU_DEVICES))
def test_what_if_accepts_modelled_processors(
    name: str, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    latency = modelled_latency(name, engine)
    assert Latency.from_json(latency.to_json(), name) == latency
    few = ["--limit", "2", "--max-new-tokens", "4"]
    assert main(["calibrate", "tree", str(engine.path), *few, "--what-if", name]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "a model, not a measurement, of the native operators" in output
    assert f"{CPU_DEVICES[name].processor.gigabytes:g} GB/s" in output
    assert "the same model was off by" in output


def test_other_engines_are_refused(tiny_engine: Path) -> None:
    with pytest.raises(EngineError, match="has the dialect 'ort', but processors are modelled"):
        modelled_latency("pi-5", open_engine(tiny_engine))


def test_an_unknown_device_is_named(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "tree", str(engine.path), "--what-if", "pi-6"]) == 2
    output = " ".join(capsys.readouterr().err.split())
    assert "cannot read a latency from pi-6" in output
    assert (
        "or one of orin-nano, agx-orin, rtx-4090, h100, orin-nano-cpu, agx-orin-cpu, pi-5" in output
    )
