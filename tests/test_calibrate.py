"""`bita calibrate`: latency, acceptance, the tree chosen by them, and what a killed run keeps."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_tree_search import random_acceptance

from bita.calibration import choose_tree
from bita.calibration.acceptance import Acceptance
from bita.calibration.choose_tree import measure_choice, plan_trees, planned_choice
from bita.calibration.devices import DEVICES, modelled_latency
from bita.calibration.latency import Latency, measure_latency, monotone, tree_of
from bita.calibration.stages import Calibrator
from bita.cli import main
from bita.engine import Engine, open_engine, read_calibration
from bita.errors import EngineError
from bita.runtime.session import Session, read_tree
from bita.tree import Tree

FEW = ["--limit", "3", "--max-new-tokens", "24", "--repeats", "1", "--threads", "1"]


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Engine:
    shutil.copytree(tiny_engine, tmp_path / "engine")
    return open_engine(tmp_path / "engine")


def device(milliseconds: list[float], rows: list[int]) -> Latency:
    """A device whose steps take these times, whatever the cache holds."""
    curve = (tuple(milliseconds),)
    return Latency(tuple(rows), (100,), curve, curve, curve, 0.0, 1, {})


@pytest.fixture(scope="module")
def acceptance(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Acceptance:
    path = tmp_path_factory.mktemp("acceptance") / "engine"
    shutil.copytree(tiny_engine, path)
    calibrator = Calibrator(open_engine(path), 1, lambda *_: None)
    return calibrator.acceptance(None, 6, 60, anew=False)


def test_every_size_of_step_is_timed(engine: Engine) -> None:
    latency = measure_latency(engine, rows=(1, 2, 7, 30, 5000), repeats=2, num_threads=1)
    assert latency.rows == (1, 2, 7, 30)
    assert latency.cache_lengths == (23, 95, 191, 352)  # of 382; with room for 30 rows at last
    assert np.array(latency.median).shape == (4, 4)
    assert np.all(np.diff(latency.fitted, axis=1) >= 0)
    assert latency.device["cores"] >= 1
    assert Latency.from_json(json.loads(json.dumps(latency.to_json())), "x") == latency


@pytest.mark.parametrize("num_rows", range(1, 30))
def test_timed_steps_have_the_rows_that_are_asked_for(num_rows: int) -> None:
    tree = tree_of(num_rows, 3)
    assert tree.num_rows == num_rows
    assert max(tree.num_masks) <= 3


def test_a_monotone_curve_is_the_nearest() -> None:
    np.testing.assert_allclose(monotone(np.array([1.0, 2, 3])), [1, 2, 3])
    np.testing.assert_allclose(monotone(np.array([3.0, 1, 2, 5, 4])), [2, 2, 2, 4.5, 4.5])


def test_times_between_and_beyond_what_was_measured() -> None:
    latency = Latency((1, 4), (10, 20), *[((1.0, 4.0), (2.0, 8.0))] * 3, 0.0, 1, {})
    assert latency.at(1, 10) == 1
    assert latency.at(2, 10) == pytest.approx(2)
    assert latency.at(4, 15) == pytest.approx(6)
    assert latency.at(6, 20) == pytest.approx(12)


@pytest.mark.parametrize("data", [3, {}, {"rows": [1]}, {"rows": "x"}])
def test_a_file_without_a_latency(data: object) -> None:
    with pytest.raises(EngineError, match="mine: no latency of a device"):
        Latency.from_json(data, "mine")


def test_where_rows_cost_nothing_the_largest_trees_win() -> None:
    flat = device([5.0, 5.0], [1, 128])
    plan = plan_trees(random_acceptance(3, 16, 0, length=2000), flat, 3, "tree", 100)
    ar, planned = plan.ar, plan.trees
    choice = planned_choice(plan)
    assert choice.chosen is planned[0]
    assert planned[0].tree.num_rows > 60
    assert planned[0].expected_speed == pytest.approx(200 * planned[0].expected_tokens)
    assert ar.expected_speed == pytest.approx(200)


def test_where_rows_cost_what_a_step_does_ar_wins(acceptance: Acceptance) -> None:
    linear = device([1.0, 128.0], [1, 128])
    choice = planned_choice(plan_trees(acceptance, linear, 3, "tree", 100))
    assert choice.chosen is choice.ar
    assert "AR" in choice.why or "cost" in choice.why


def test_exact_engines_get_spines(acceptance: Acceptance) -> None:
    flat = device([5.0, 5.0], [1, 128])
    planned = plan_trees(acceptance, flat, 3, "exact", 100).trees
    assert planned
    for candidate in planned:
        assert candidate.tree.spine_length == candidate.tree.num_nodes - 1


def test_ar_wins_unless_a_tree_pays(
    engine: Engine, acceptance: Acceptance, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = device([5.0, 5.0], [1, 128])
    plan = plan_trees(acceptance, flat, 3, "tree", 100)
    session = Session.open(engine.path, mode="tree", num_threads=1)
    for least, wins in ((0.0, True), (1000.0, False)):
        monkeypatch.setattr(choose_tree, "LEAST_GAIN", least)
        choice = measure_choice(session, plan, ["Hello tree", "A mask token"], 20)
        assert (choice.chosen.tree.num_nodes > 1) == wins
        assert choice.ar.measured_tokens == 1.0
        assert choice.chosen.measured_speed > 0


def test_the_engine_has_the_tree_that_was_chosen(
    engine: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose_tree, "LEAST_GAIN", 0.0)
    assert main(["calibrate", "acceptance", str(engine.path), *FEW]) == 0
    assert "steps" in capsys.readouterr().out
    assert main(["calibrate", "latency", str(engine.path), *FEW]) == 0
    assert "monotone fit" in capsys.readouterr().out
    assert main(["calibrate", "tree", str(engine.path), *FEW]) == 0
    assert "chosen: " in capsys.readouterr().out
    revised = open_engine(engine.path, check_hashes=True)
    report = read_calibration(revised)
    assert report.keys() == {"acceptance", "latency", "tree"}
    assert read_tree(revised).num_rows == report["tree"]["chosen"]["rows"]
    assert revised.file("calibration.png").read_bytes().startswith(b"\x89PNG")
    session = Session.open(revised.path, num_threads=1)
    assert session.tree == read_tree(revised)
    assert main(["verify", str(revised.path), "--limit", "2", "--model", "-"]) == 0


def test_the_latency_of_another_device_is_measured_again(engine: Engine) -> None:
    calibrator = Calibrator(engine, 1, lambda *_: None)
    own = calibrator.latency(1, anew=False)
    assert Calibrator(calibrator.engine, 1, lambda *_: None).latency(1, anew=False) == own
    elsewhere = Calibrator(calibrator.engine, 2, lambda *_: None).latency(1, anew=False)
    assert elsewhere.device != own.device


def test_what_if_changes_nothing(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "board.json"
    curve = device([5.0, 5.0], [1, 128])
    path.write_text(json.dumps(replace(curve, device={"processor": "A Board"}).to_json()))
    assert main(["calibrate", "tree", str(engine.path), *FEW, "--what-if", str(path)]) == 0
    out = capsys.readouterr().out
    assert "A Board" in out
    assert "chosen: " in out
    revised = open_engine(engine.path)
    assert read_tree(revised) == Tree.triangle()
    assert read_calibration(revised).keys() == {"acceptance"}
    path.write_text("{")
    assert main(["calibrate", "tree", str(engine.path), *FEW, "--what-if", str(path)]) == 2
    assert f"cannot read a latency from {path}" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_modelled_devices_answer_what_if(
    name: str, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    latency = modelled_latency(name, engine)
    for curve in latency.fitted:
        assert list(curve) == sorted(curve)
    assert latency.fitted[0][0] < latency.fitted[-1][0]  # a longer text is read
    assert main(["calibrate", "tree", str(engine.path), *FEW, "--what-if", name]) == 0
    assert "not a measurement" in " ".join(capsys.readouterr().out.split())


class StoppedError(Exception):
    """A run that was killed."""


def test_a_killed_run_goes_on_behind_the_last_answer(engine: Engine, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise StoppedError

    told: list[int] = []
    with pytest.raises(StoppedError):
        Calibrator(engine, 1, stop).acceptance(None, 4, 24, anew=False)
    (kept,) = tmp_path.glob(".*.jsonl")
    text = kept.read_text()
    assert len(text.splitlines()) == 3
    kept.write_text(text + '{"positions": [[[1, ')  # killed while it wrote
    calibrator = Calibrator(engine, 1, lambda stage, done, total: told.append(done))
    again = calibrator.acceptance(None, 4, 24, anew=False)
    assert not kept.exists()
    fresh = Calibrator(calibrator.engine, 1, lambda *_: None).acceptance(None, 4, 24, anew=True)
    assert again == fresh
    assert calibrator.acceptance(None, 2, 24, anew=False) == again  # kept in the engine
