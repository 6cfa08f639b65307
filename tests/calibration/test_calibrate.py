"""Tests of `bita calibrate`: latency, acceptance, the choice of a tree, and resumed runs."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from acceptances import in_texts, random_acceptance, repeating
from engine_edits import edit_manifest

from bita.calibration import choose_tree
from bita.calibration.acceptance import Acceptance, Guess, Position
from bita.calibration.choose_tree import (
    expected_choice,
    expected_of,
    forecast_trees,
    measure_choice,
)
from bita.calibration.devices import DEVICES, modelled_latency
from bita.calibration.effort import Effort
from bita.calibration.latency import Latency, describe_device, measure_latency, monotone
from bita.calibration.stages import Calibrator
from bita.calibration.step_times import tree_of, usable_sizes
from bita.calibration.table_search import best_table
from bita.calibration.turns import Timed
from bita.cli.main import main
from bita.engine import Engine, open_engine, read_calibration
from bita.errors import EngineError
from bita.runtime.generation import Generation
from bita.runtime.session import Session, read_tree
from bita.runtime.text.prompt_encoder import Message
from bita.tree import Tree
from bita.tree_table import TreeTable

FEW = ["--limit", "3", "--max-new-tokens", "24", "--repeats", "1", "--threads", "1"]


def calibrator_of(
    engine: Engine,
    report: Callable[[str, int, int], None] = lambda *_: None,
    prompts: Path | None = None,
    num_threads: int = 1,
    **effort: int,
) -> Calibrator:
    little = {"num_prompts": 6, "max_new_tokens": 24, "repeats": 1, **effort}
    return Calibrator(engine, num_threads, report, prompts, Effort(**little))


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Engine:
    shutil.copytree(tiny_engine, tmp_path / "engine")
    return open_engine(tmp_path / "engine")


def device(milliseconds: list[float], rows: list[int]) -> Latency:
    """Return the latency of a device whose steps take these times at every cache length."""
    curve = (tuple(milliseconds),)
    return Latency(tuple(rows), (100,), curve, curve, curve, 0.0, 1, {})


@pytest.fixture(scope="module")
def acceptance(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Acceptance:
    path = tmp_path_factory.mktemp("acceptance") / "engine"
    shutil.copytree(tiny_engine, path)
    return calibrator_of(open_engine(path), max_new_tokens=60).acceptance()


def test_every_size_of_step_is_timed(engine: Engine) -> None:
    latency = measure_latency(engine, max_rows=33, repeats=2, num_threads=1)
    assert latency.rows == (*range(1, 9), 10, 12, 14, 16, 20, 24, 32)
    assert latency.cache_lengths == (
        23,
        95,
        191,
        350,
    )  # of 382; the last one leaves room for 32 rows
    assert np.array(latency.median).shape == (4, 15)
    assert np.all(np.diff(latency.fitted, axis=1) >= 0)
    assert latency.device["cores"] >= 1
    assert Latency.from_json(json.loads(json.dumps(latency.to_json())), "x") == latency


@pytest.mark.parametrize("num_rows", range(1, 30))
def test_timed_steps_have_the_requested_number_of_rows(num_rows: int) -> None:
    tree = tree_of(num_rows, 3)
    assert tree.num_rows == num_rows
    assert max(tree.num_masks) <= 3


def test_only_sizes_that_could_pay_off_are_timed_often() -> None:
    samples = [[3.0, 2.0], [7.0, 9.0], [19.0, 30.0], [20.5, 21.0], [16.0, 70.0]]
    assert usable_sizes(samples) == [0, 1, 2, 4]


def test_the_monotone_fit_is_the_nearest_monotone_curve() -> None:
    np.testing.assert_allclose(monotone(np.array([1.0, 2, 3])), [1, 2, 3])
    np.testing.assert_allclose(monotone(np.array([3.0, 1, 2, 5, 4])), [2, 2, 2, 4.5, 4.5])


def test_times_are_interpolated_and_extrapolated() -> None:
    curves = ((1.0, 4.0), (2.0, 8.0))
    latency = Latency((1, 4), (10, 20), curves, curves, curves, 0.0, 1, {})
    assert latency.at(1, 10) == 1
    assert latency.at(2, 10) == pytest.approx(2)
    assert latency.at(4, 15) == pytest.approx(6)
    assert latency.at(6, 20) == pytest.approx(12)


@pytest.mark.parametrize("data", [3, {}, {"rows": [1]}, {"rows": "x"}])
def test_an_invalid_latency_is_refused(data: object) -> None:
    with pytest.raises(EngineError, match="mine: the latency is not valid"):
        Latency.from_json(data, "mine")


@pytest.mark.slow
def test_the_largest_trees_win_if_rows_cost_nothing() -> None:
    flat = device([5.0, 5.0], [1, 128])
    forecast = forecast_trees(random_acceptance(3, 16, 0, length=2000), flat, 3, "tree")
    ar, expected = forecast.ar, forecast.trees
    choice = expected_choice(forecast)
    assert choice.chosen is expected[0]
    assert expected[0].tree.num_rows > 60
    assert expected[0].expected_speed == pytest.approx(200 * expected[0].expected_tokens)
    assert ar.expected_speed == pytest.approx(200)


def test_ar_wins_if_each_row_costs_as_much_as_a_step(acceptance: Acceptance) -> None:
    linear = device([1.0, 128.0], [1, 128])
    choice = expected_choice(forecast_trees(acceptance, linear, 3, "tree"))
    assert choice.chosen is choice.ar
    assert "AR" in choice.why or "cost" in choice.why


def test_exact_engines_get_spines(acceptance: Acceptance) -> None:
    flat = device([5.0, 5.0], [1, 128])
    expected = forecast_trees(acceptance, flat, 3, "exact").trees
    assert expected
    for candidate in expected:
        for tree in TreeTable.of(candidate.tree).trees:
            assert tree.spine_length == tree.num_nodes - 1


@pytest.mark.parametrize(
    ("seed", "cost"),
    [(0, 0.3), *(pytest.param(2, cost, marks=pytest.mark.slow) for cost in (0.3, 0.45))],
)
def test_searches_start_both_with_and_without_masks(seed: int, cost: float) -> None:
    """A search that starts only from the best single tree finds a table up to 8 % slower here."""
    acceptance = repeating(seed)
    rows_cost = device([1.0, 1.0 + cost * 63], [1, 64])
    found = forecast_trees(acceptance, rows_cost, 3, "tree", min_exact_rows=1).trees[0]
    times = [rows_cost.at(rows, acceptance.mean_length) for rows in range(1, 17)]
    for start, num_masks in ((Tree.root_only(), 0), (Tree.chain(1, 1), 3)):
        trees = TreeTable.of(best_table(acceptance, times, num_masks, "tree", start))
        other = expected_of(trees.with_costs(times), acceptance, rows_cost, "tree", 1)
        assert found.expected_speed >= 0.999 * other.expected_speed


def test_ar_wins_unless_a_tree_pays(
    engine: Engine, acceptance: Acceptance, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = device([5.0, 5.0], [1, 128])
    forecast = forecast_trees(acceptance, flat, 3, "tree")
    session = Session.open(engine.path, mode="tree", num_threads=1)
    for least, wins in ((0.0, True), (1000.0, False)):
        monkeypatch.setattr(choose_tree, "MIN_GAIN", least)
        choice = measure_choice(session, forecast, ["Hello tree", "A mask token"], 20)
        assert choice.chosen.tree.is_ar != wins
        assert bool(TreeTable.of(choice.chosen.tree).costs) == wins
        assert choice.ar.measured_tokens == 1.0
        assert choice.chosen.measured_speed > 0


@pytest.mark.slow
def test_trees_for_lower_and_higher_row_costs_are_timed_too(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such trees are chosen if they turn out to be faster."""
    acceptance = in_texts(random_acceptance(3, 16, 0, length=2000), 100)
    rows_cost = device([1.0, 1.0 + 0.1 * 63], [1, 64])
    forecast = forecast_trees(acceptance, rows_cost, 3, "tree", min_exact_rows=1)
    cheap, dear = forecast.for_other_costs
    assert cheap.mean_rows > forecast.trees[0].mean_rows > dear.mean_rows
    assert max(cheap.expected_speed, dear.expected_speed) < forecast.trees[0].expected_speed
    assert {cheap, dear} < {*forecast.trees}
    assert {TreeTable.of(each.tree).costs[1] for each in (cheap, dear)} == {1.1}

    def decode(sessions: Sequence[Session], *_: object) -> list[list[Timed]]:
        fast = [session.tree == cheap.tree for session in sessions]
        assert fast.count(True) == 1
        return [[Timed(20, 10, 1.0 if each else 2.0)] for each in fast]

    monkeypatch.setattr(choose_tree, "decode_in_turns", decode)
    session = Session.open(engine.path, mode="tree", num_threads=1)
    choice = measure_choice(session, forecast, ["Hello tree"], 20)
    assert choice.chosen.tree == cheap.tree
    assert dear.tree in {other.tree for other in choice.others}


@pytest.mark.slow
def test_the_engine_gets_the_chosen_tree(
    engine: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose_tree, "MIN_GAIN", 0.0)
    assert main(["calibrate", "acceptance", str(engine.path), *FEW]) == 0
    assert "steps" in capsys.readouterr().out
    assert main(["calibrate", "latency", str(engine.path), *FEW]) == 0
    assert "monotone fit" in capsys.readouterr().out
    assert read_calibration(open_engine(engine.path)).keys() == {"acceptance", "latency", "memory"}
    assert main(["calibrate", "latency", str(engine.path), *FEW]) == 0
    assert "latency: as it was measured before; --remeasure" in capsys.readouterr().err
    assert main(["calibrate", "latency", str(engine.path), *FEW, "--remeasure"]) == 0
    assert "as it was measured" not in capsys.readouterr().err
    assert main(["calibrate", "tree", str(engine.path), *FEW]) == 0
    assert "chosen: " in capsys.readouterr().out
    revised = open_engine(engine.path, check_hashes=True)
    report = read_calibration(revised)
    assert report.keys() == {"acceptance", "latency", "tree", "memory"}
    at_load, decoding = report["memory"]["at_load"], report["memory"]["decoding"]
    assert 10e6 < at_load["host"] <= decoding["host"] < 1e9
    assert at_load["gpu"] == decoding["gpu"] == 0
    assert read_tree(revised).num_rows == report["tree"]["chosen"]["rows"]
    assert revised.file("calibration.png").read_bytes().startswith(b"\x89PNG")
    session = Session.open(revised.path, num_threads=1)
    assert session.tree == read_tree(revised)
    assert main(["verify", str(revised.path), "--limit", "2", "--model", "-"]) == 0


@pytest.mark.parametrize("dialect", ["ort", "native"])
def test_branches_are_searched_where_exact_decoding_accepts_them(
    engine: Engine, dialect: str
) -> None:
    edit_manifest(engine.path, dialect=dialect, precision="int4", mode="exact")
    flat = device([1.0, 1.1], [1, 128])
    drafts = random_acceptance(3, 16, 0)
    found = calibrator_of(open_engine(engine.path)).forecast(drafts, flat)
    trees = (tree for each in found.by_rows for tree in TreeTable.of(each.tree).trees)
    ranks = {tree.max_rank for tree in trees}
    assert (max(ranks) > 1) == (dialect == "native")


def test_the_latency_of_another_device_is_measured_again(engine: Engine) -> None:
    calibrator = calibrator_of(engine, max_rows=4)
    own = calibrator.latency()
    again = calibrator_of(calibrator.engine, max_rows=3)
    assert again.latency() == own
    elsewhere = calibrator_of(calibrator.engine, num_threads=2, max_rows=4).latency()
    assert elsewhere.device != own.device


def test_a_latency_without_the_requested_sizes_is_measured_again(engine: Engine) -> None:
    calibrator = calibrator_of(engine, max_rows=4)
    assert calibrator.latency().rows == (1, 2, 3, 4)
    assert calibrator_of(calibrator.engine, max_rows=6).latency().rows == (1, 2, 3, 4, 5, 6)


@pytest.mark.slow
def test_trees_are_timed_on_prompts_not_used_for_acceptance(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts_seen: list[Sequence[Message]] = []
    stream = Session.stream

    def record_prompt(session: Session, prompt: Sequence[Message], *args: Any) -> Generation:
        prompts_seen.append(prompt)
        return stream(session, prompt, *args)

    monkeypatch.setattr(Session, "stream", record_prompt)
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"Hello {word}"}) for word in "abcdef"))
    calibrator = calibrator_of(engine, prompts=path, max_rows=4)
    acceptance, latency = calibrator.acceptance(), calibrator.latency()
    assert len(acceptance.texts) == 4
    assert len(prompts_seen) == 4
    prompts_seen.clear()
    calibrator.tree(acceptance, latency)
    words = {prompt[0]["content"] for prompt in prompts_seen}
    assert words == {"Hello c", "Hello f"}


def test_a_model_without_a_chat_template_is_calibrated(engine: Engine) -> None:
    path = engine.file("manifest.json")
    manifest = json.loads(path.read_text())
    if manifest["files"].pop("chat_template.jinja", None):
        engine.file("chat_template.jinja").unlink()
    path.write_text(json.dumps(manifest))
    calibrator = calibrator_of(open_engine(engine.path), max_rows=4)
    assert calibrator.tree(calibrator.acceptance(), calibrator.latency()).ar.measured_speed > 0


def test_the_mean_length_is_taken_over_all_positions() -> None:
    position = Position((1,), (Guess(),))
    acceptance = Acceptance(((position,) * 3, (position,)), (10, 20), "x", 4)
    assert acceptance.mean_length == (10 + 11 + 12 + 20) / 4


def test_what_if_does_not_change_the_engine(
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
def test_what_if_accepts_modelled_devices(
    name: str, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    latency = modelled_latency(name, engine)
    for curve in latency.fitted:
        assert list(curve) == sorted(curve)
    assert latency.fitted[0][0] < latency.fitted[-1][0]  # a longer cache is read
    assert main(["calibrate", "tree", str(engine.path), *FEW, "--what-if", name]) == 0
    assert "not a measurement" in " ".join(capsys.readouterr().out.split())


class StoppedError(Exception):
    """Stands for a killed run."""


def test_a_killed_run_continues_after_the_last_answer(engine: Engine, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise StoppedError

    reported: list[int] = []
    with pytest.raises(StoppedError):
        calibrator_of(engine, stop).acceptance()
    (kept,) = tmp_path.glob(".*.jsonl")
    text = kept.read_text()
    assert len(text.splitlines()) == 3
    kept.write_text(text + '{"positions": [[[1, ')  # killed while writing
    calibrator = calibrator_of(engine, lambda stage, done, total: reported.append(done))
    again = calibrator.acceptance()
    assert not kept.exists()
    fresh = calibrator_of(calibrator.engine).acceptance(again=True)
    assert again == fresh
    few = calibrator_of(calibrator.engine, num_prompts=3)
    assert few.acceptance() == again  # kept in the engine


def test_what_if_accepts_another_mode(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "board.json"
    path.write_text(json.dumps(device([5.0, 5.0], [1, 128]).to_json()))
    few = ["calibrate", "tree", str(engine.path), *FEW]
    for mode, branches in (("exact", False), ("tree", True)):
        assert main([*few, "--what-if", str(path), "--mode", mode]) == 0
        out = capsys.readouterr().out
        widths = re.search(r"chosen: \d+ nodes \(widths \[(.*?)\]\)", out)
        assert widths is not None
        assert ({*widths[1].split(", ")} != {"1"}) == branches
        assert "BiTA's triangle" in " ".join(out.split())
    assert main([*few, "--mode", "tree"]) == 2
    assert "--mode goes with --what-if" in capsys.readouterr().err


def test_the_description_of_a_device_lists_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "nvidia" not in describe_device(2)
    tool = tmp_path / "nvidia-smi"
    lines = "Some GPU, 580.1, 1980 MHz, 2619 MHz, [N/A], 700.00 W\nOther, 580.1, 1, 2, 3, 4 W\n"
    tool.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    tool.chmod(0o755)
    first, second = describe_device(2)["nvidia"]
    assert first["name"] == "Some GPU"
    assert first["clocks.max.sm"] == "1980 MHz"
    assert first["power.limit"] == "700.00 W"
    assert second["clocks.applications.graphics"] == "3"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert "nvidia" not in describe_device(2)
