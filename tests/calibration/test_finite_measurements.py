"""Measurements that are not finite are refused by name, and never make an engine look fast."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from acceptances import random_acceptance
from make_tiny_engine import CONFIG

from bita.calibration import choose_tree
from bita.calibration.acceptance import Acceptance, Guess, Position, measure_acceptance
from bita.calibration.choose_tree import forecast_trees, measure_choice
from bita.calibration.effort import Effort
from bita.calibration.latency import Latency
from bita.calibration.moments import collect_moments
from bita.calibration.quality import Scored, measure_quality
from bita.calibration.report import Quality, parse_quality, read_quality
from bita.calibration.stages import Calibrator
from bita.calibration.turns import Timed
from bita.calibration.verify import Comparison, Divergence
from bita.cli.main import main
from bita.engine import CALIBRATION_FILE, GRAPH_FILE, Engine, open_engine, revise_engine
from bita.errors import EngineError
from bita.export.architecture import read_architecture
from bita.runtime.session import Session

NAN, INF = float("nan"), float("inf")
QUALITY = Quality(12.0, 11.0, 0.01, 0.97, "model.layers.0.mlp.down_proj", 0.2, 3, 40, "gptq", "x")
CURVE = ((1.0, 2.0), (1.5, 2.5))
LATENCY = Latency((1, 8), (10, 100), CURVE, CURVE, CURVE, 0.0, 3, {"processor": "A Board"})


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Engine:
    shutil.copytree(tiny_engine, tmp_path / "engine")
    return open_engine(tmp_path / "engine")


def with_weight(engine: Engine, name: str, change: Callable[[np.ndarray], None]) -> Engine:
    """Change one weight of the engine, as if it had been built from a damaged model."""
    tensor = ir.load(engine.file(GRAPH_FILE)).graph.initializers[name].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    data = bytearray(engine.file(str(tensor.location)).read_bytes())
    size, place = tensor.size, int(tensor.offset or 0)
    values = np.frombuffer(data, np.float32, size, place).copy()
    change(values)
    data[place : place + 4 * size] = values.tobytes()
    return revise_engine(engine, {str(tensor.location): bytes(data)})


def fill(value: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[:4] = value

    return change


def with_calibration(engine: Engine, topics: dict[str, Any]) -> Engine:
    return revise_engine(open_engine(engine.path), {CALIBRATION_FILE: json.dumps(topics)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, NAN) for name in ("perplexity", "reference_perplexity", "kl", "same_greedy")),
        *((name, INF) for name in ("perplexity", "kl", "worst_layer_error")),
        *(("kl", -0.1), ("same_greedy", 1.01), ("same_greedy", -0.1), ("perplexity", 0.5)),
        *(("num_tokens", -1), ("num_texts", 1.5), ("kl", "0.1"), ("kl", True), ("kl", None)),
        *(("worst_layer", 3), ("prompts", None)),
    ],
)
def test_a_quality_out_of_range_is_refused(engine: Engine, name: str, value: Any) -> None:
    data = {**asdict(QUALITY), name: value}
    with pytest.raises(EngineError, match=rf"the engine: quality\.{name} is "):
        parse_quality(data, "the engine")
    broken = with_calibration(engine, {"quality": data})
    with pytest.raises(EngineError, match=rf"calibration\.json .*quality\.{name} is "):
        read_quality(broken)
    assert main(["inspect", str(broken.path)]) == 2


def test_a_quality_over_no_tokens_is_shown_as_not_measured() -> None:
    assert "KL" in str(QUALITY)
    assert str(replace(QUALITY, num_tokens=0, kl=0.0)).startswith("not measured")


def test_a_quality_in_range_is_read(engine: Engine) -> None:
    assert read_quality(engine) is None
    assert read_quality(with_calibration(engine, {"quality": asdict(QUALITY)})) == QUALITY
    wrong: tuple[Any, ...] = (3, [], "x")
    for data in wrong:
        with pytest.raises(EngineError, match=r"quality is .*, not a table"):
            read_quality(with_calibration(engine, {"quality": data}))


LATENCY_FAULTS: list[tuple[str, Any]] = [
    *((name, ((1.0, bad), (1.0, 2.0))) for name in ("median", "fitted") for bad in (NAN, 0.0, -1)),
    *((name, ((1.0, INF), (1.0, 2.0))) for name in ("median", "fitted", "spread")),
    *((name, ((1.0,), (1.0, 2.0))) for name in ("median", "fitted", "spread")),
    *((name, ((1.0, 2.0),)) for name in ("median", "fitted", "spread")),
    *(("spread", ((-1.0, 0.0), (0.0, 0.0))), ("fitted", ((2.0, 1.0), (1.0, 2.0)))),
    *(("median", 3), ("median", [3]), ("median", "x"), ("median", None)),
    *(("rows", [8, 1]), ("rows", [1, 1]), ("rows", [0, 8]), ("rows", [])),
    *(("rows", [1, 2.5]), ("rows", [1, NAN]), ("rows", [1, True]), ("rows", 3)),
    *(("cache_lengths", [100, 10]), ("cache_lengths", [-1, 10]), ("cache_lengths", [])),
    *(("residual", NAN), ("residual", -1.0), ("repeats", -1), ("repeats", 1e30), ("device", 3)),
]


@pytest.mark.parametrize(("name", "value"), LATENCY_FAULTS)
def test_an_impossible_latency_is_refused(
    engine: Engine, tmp_path: Path, name: str, value: Any
) -> None:
    data = json.loads(json.dumps({**LATENCY.to_json(), name: value}))
    with pytest.raises(
        EngineError, match=rf"mine: the latency is not valid \(.*--remeasure\):(.|\n)*{name}"
    ):
        Latency.from_json(data, "mine")
    path = tmp_path / "board.json"
    path.write_text(json.dumps({"latency": data}))
    assert main(["calibrate", "tree", str(engine.path), "--what-if", str(path)]) == 2


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "[" * 5000, "\ud800"])
def test_files_without_a_latency_are_refused(
    engine: Engine, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "board.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert main(["calibrate", "tree", str(engine.path), "--what-if", str(path)]) == 2
    assert f"cannot read a latency from {path}" in capsys.readouterr().err


def test_expected_step_times_stay_above_zero() -> None:
    curves = ((9.0, 9.0), (1.0, 1.0))  # noise: faster where more text is cached
    falling = replace(LATENCY, median=curves, fitted=curves)
    assert falling.at(1, 100_000) == 0.5
    steep = replace(LATENCY, rows=(4, 8), fitted=((1.0, 9.0), (1.0, 9.0)))
    assert steep.at(1, 10) == 0.5


POSITION = [[1, 0], [2, 1, 3, 0], [4, 0, 0, 1]]
UNCOUNTED: tuple[Any, ...] = (0, -1, NAN, 1e30, "4", None, True)
BAD_POSITIONS: tuple[Any, ...] = (
    *([], [[1]], [1, [2, 1, 0, 0]], [[1], 2, 3, 4], [[1], [2, 1]], 3, "abc", None),
)
BAD_TEXTS: tuple[Any, ...] = ([], [[]], [3], 3, None, [[POSITION], [POSITION]])
ACCEPTANCE_FAULTS: list[tuple[str, Any]] = [
    *(("num_ranks", count) for count in UNCOUNTED),
    *(("prompt_lengths", value) for value in ([], [3, 4], [0], [NAN], [-5], "x", 3)),
    *(("texts", value) for value in BAD_TEXTS),
    *(("texts", [[position]]) for position in BAD_POSITIONS),
    *(("texts", [[[ranks, [2, 1, 0, 0]]]]) for ranks in ([5], [-1], [NAN], [1.5], ["1"], 1, None)),
    *(("texts", [[[[1], [level, 1, 0, 0]]]]) for level in (-1, 10_000, NAN, 1e300, True, "1")),
    *(("texts", [[[[1], [1, right, 0, 0]]]]) for right in (-1, 9, NAN, None)),
    *(("texts", [[[[1], [1, 1, rank, 0]]]]) for rank in (-1, 5, NAN)),
    *(("texts", [[[[1], [1, 1, 2, from_masks]]]]) for from_masks in (2, True, None)),
]


@pytest.mark.parametrize(("name", "value"), ACCEPTANCE_FAULTS)
def test_an_impossible_acceptance_is_refused(name: str, value: Any) -> None:
    data: dict[str, Any] = {
        "prompts_sha256": "x",
        "prompt_lengths": [7],
        "num_ranks": 4,
        "texts": [[POSITION]],
    }
    position = Position((1, 0), (Guess(2, 1, 3, 0), Guess(4, 0, 0, 1)))
    assert Acceptance.from_json(data).texts == ((position,),)
    with pytest.raises(EngineError, match=r"acceptance is not readable .*--remeasure"):
        Acceptance.from_json({**data, name: value})


def test_stored_measurements_are_checked_before_a_tree_is_chosen(engine: Engine) -> None:
    data = random_acceptance(3, 16, 0, length=20).to_json()
    data["num_ranks"] = NAN
    broken = with_calibration(engine, {"acceptance": data, "latency": {"rows": [1]}})
    calibrator = Calibrator(broken, 1, lambda *_: None, effort=Effort(3, 8, 1, 4))
    with pytest.raises(EngineError, match="num_ranks is nan"):
        calibrator.acceptance()
    with pytest.raises(EngineError, match="the latency is not valid"):
        calibrator.latency()


def test_invalid_files_of_a_killed_run_are_ignored(engine: Engine, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    def calibrator(report: Callable[[str, int, int], None] = lambda *_: None) -> Calibrator:
        return Calibrator(open_engine(engine.path), 1, report, effort=Effort(3, 8, 1, 4))

    with pytest.raises(KeyboardInterrupt):
        calibrator(stop).acceptance()
    (kept,) = tmp_path.rglob("*acceptance.jsonl")
    key = kept.read_text().splitlines()[0]
    fresh = calibrator().acceptance(again=True)
    for line in ('{"positions": [[["NaN"], 1, 1]]}', '{"other": 1}', '{"positions": 3}'):
        kept.write_text(f"{key}\n{line}\n")
        assert calibrator().acceptance(again=True) == fresh
        assert not kept.exists()


@pytest.mark.parametrize("value", [NAN, INF])
def test_an_engine_with_values_that_are_not_finite_is_not_measured(
    engine: Engine, value: float
) -> None:
    texts = [Scored((5, 9, 77, 200, 31, 8), 2)]
    broken = with_weight(engine, "model.layers.1.mlp.down_proj.weight", fill(value))
    with pytest.raises(EngineError, match=r"model\.layers\.1\.mlp\.down_proj\.output of .* is not"):
        measure_quality(open_engine(broken.path), broken, texts)
    with pytest.raises(EngineError, match="not numbers"):
        measure_acceptance(broken, [[5, 9, 77]], 8, 1)


def test_sums_that_overflow_name_their_layer(engine: Engine, tmp_path: Path) -> None:
    def enlarge(values: np.ndarray) -> None:
        values *= 1e22

    large = with_weight(engine, "model.layers.0.mlp.gate_up_proj.weight", enlarge)
    with pytest.raises(EngineError, match=r"down_proj.*not finite"):
        collect_moments(large, read_architecture(CONFIG, 64), [[5, 9, 77, 31]], tmp_path / "m")


@pytest.mark.slow
def test_the_forecast_decides_without_a_timed_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = replace(LATENCY, fitted=((5.0, 5.0), (5.0, 5.0)), median=((5.0, 5.0), (5.0, 5.0)))
    forecast = forecast_trees(random_acceptance(3, 16, 0, length=400), flat, 3, "tree")
    monkeypatch.setattr(
        choose_tree, "decode_in_turns", lambda sessions, *_: [[Timed(0, 0, 0.0)] for _ in sessions]
    )
    session = Session.open(engine.path, mode="tree", num_threads=1)
    choice = measure_choice(session, forecast, ["Hello"], 8)
    assert choice.chosen is forecast.trees[0]  # not "0.00 times as fast"
    assert choice.chosen.measured_speed == 0


def test_a_nan_margin_does_not_excuse_a_divergence() -> None:
    margins = {0.01: True, 0.5: False, NAN: False, None: True}
    for margin, allowed in margins.items():
        comparison = Comparison("x", tolerance=0.1)
        comparison.divergences.append(Divergence(0, 3, 1, 2, margin))
        assert (not comparison.forbidden) == allowed


def test_a_report_too_large_to_read_is_not_written(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bita.calibration.stages.MAX_CALIBRATION_BYTES", 100)
    before = open_engine(engine.path)
    with pytest.raises(
        EngineError, match=r"calibration\.json is limited to 0 MB; give a smaller --limit"
    ):
        Calibrator(engine, 1, lambda *_: None, effort=Effort(3, 8, 1, 4)).acceptance()
    assert open_engine(engine.path) == before
