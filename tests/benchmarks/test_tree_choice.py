"""Tests of benchmarks/tree_choice.py on a tiny engine, and of interleaved decoding."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import precisions
import pytest
import single_answers
import tree_choice

from bita.calibration import turns
from bita.calibration.effort import Effort
from bita.calibration.stages import Calibrator
from bita.calibration.turns import Timed, decode_in_turns, together
from bita.engine import CALIBRATION_FILE, open_engine, read_calibration, revise_engine
from bita.runtime.session import Session
from bita.tree import Tree


@pytest.fixture(scope="module")
def calibrated(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibrate with an invented T(q), so that the trees do not depend on the machine's load."""
    path = tmp_path_factory.mktemp("choice") / "engine"
    shutil.copytree(tiny_engine, path)
    effort = Effort(num_prompts=6, max_new_tokens=40, repeats=1, max_rows=8)
    calibrator = Calibrator(open_engine(path), 1, lambda *_: None, effort=effort)
    acceptance, timed = calibrator.acceptance(), calibrator.latency()
    curve = tuple(1 + rows / 100 for rows in timed.rows)
    made_up = replace(
        timed, median=(curve,) * len(timed.median), fitted=(curve,) * len(timed.fitted)
    )
    calibrator.tree(acceptance, made_up)
    report = {**read_calibration(calibrator.engine), "latency": made_up.to_json()}
    revise_engine(calibrator.engine, {CALIBRATION_FILE: json.dumps(report)})
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = [
        {"category": category, "turns": [f"Hello {word} {word}"]}
        for category in ("writing", "math")
        for word in ("tree", "mask", "fox")
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.thorough
def test_the_report_has_all_contenders_and_categories(
    calibrated: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    options = ["--contest", "2", "--sources", "6", "--num-random", "2", "--max-new-tokens", "12"]
    files = [str(calibrated), "--prompts", str(questions), "--out", str(out)]
    assert tree_choice.main([*files, *options, "--threads", "1"]) == 0
    assert "triangle (5,4,3)" in capsys.readouterr().out
    (result,) = json.loads(out.read_text())["engines"].values()
    contest, sources = result["contest"], result["sources"]
    assert [*contest] == [
        "AR",
        "chosen",
        "best",
        "best single tree",
        "triangle (5,4,3)",
        "random 0",
        "random 1",
    ]
    assert 2 <= contest["random 0"]["rows"] <= contest["best"]["rows"]
    assert contest["best single tree"]["states"] == {}
    assert contest["AR"]["times_ar"] == contest["AR"]["tokens_per_step"] == 1
    assert sources["masks"]["rows"] > 2
    drawn = [sources["n-grams"]["tree"], *sources["n-grams"]["states"].values()]
    assert any("guesses from" in tree for tree in drawn)
    assert not any("mask rows" in tree and ", 0 mask rows" not in tree for tree in drawn)
    for row in sources.values():
        assert [*row["by_category"]] == ["writing", "math"]
        assert sum(part["answers"] for part in row["by_category"].values()) == 6
        assert row["same_text"] == 6  # float32, and a tiny model has wide margins


def test_an_uncalibrated_engine_is_refused(
    tiny_engine: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--prompts", str(questions), "--out", str(tmp_path / "x.json")]
    assert tree_choice.main([str(tiny_engine), *files]) == 1
    assert "has no acceptance in its calibration.json; run: bita calibrate tree" in (
        capsys.readouterr().err
    )


def test_prompts_of_another_form_are_refused(calibrated: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"question": "Hello"}')
    assert tree_choice.main([str(calibrated), "--prompts", str(path), "--out", "x"]) == 1


@pytest.mark.parametrize("num_rows", [2, 3, 9, 40])
def test_random_trees_have_the_requested_number_of_rows(num_rows: int) -> None:
    rng = np.random.default_rng(1)
    trees = {tree_choice.random_tree(num_rows, 3, rng) for _ in range(8)}
    assert {tree.num_rows for tree in trees} == {num_rows}
    assert len(trees) > 1 or num_rows == 2
    for tree in trees:
        assert not tree.misfits(3, tree_choice.RANDOM_RANKS, 1000)


def test_interleaved_decoding_counts_each_answer_separately(tiny_engine: Path) -> None:
    session = Session.open(tiny_engine, num_threads=1)
    sessions = [session.using(tree=Tree.root_only()), session.using(tree=Tree.chain(3))]
    reported: list[tuple[int, int]] = []
    timed = decode_in_turns(
        sessions, ["Hello tree", "A mask"], 20, lambda done, total: reported.append((done, total))
    )
    assert reported == [(1, 2), (2, 2)]
    for plain, tree, prompt in zip(*timed, ("Hello tree", "A mask"), strict=True):
        assert plain.token_ids == tree.token_ids
        assert list(plain.token_ids) == session.generate(prompt, 20).token_ids
        assert plain.num_steps == plain.num_tokens == len(plain.token_ids) - 1
        assert tree.num_steps <= plain.num_steps
    assert together(timed[0]).num_steps == sum(each.num_steps for each in timed[0])
    assert Timed(6, 3, 500.0).tokens_per_second == 12


def test_no_session_answers_after_the_same_other_one_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered: list[int] = []

    class Numbered:
        def __init__(self, number: int) -> None:
            self.number = number

        def generate(self, *_: object) -> None:
            pass

    def time_answer(session: Numbered, *_: object) -> Timed:
        answered.append(session.number)
        return Timed(session.number, 1, 1.0)

    monkeypatch.setattr(turns, "_time_answer", time_answer)
    sessions: list[Any] = [Numbered(number) for number in range(3)]
    timed = decode_in_turns(sessions, ["a prompt"] * 120, 1)
    assert [{run.num_tokens for run in runs} for runs in timed] == [{0}, {1}, {2}]
    assert [len(runs) for runs in timed] == [120, 120, 120]
    after = Counter(pairwise(answered))
    for first, second in permutations(range(3), 2):
        assert 30 < after[first, second] < 90  # 53 on average


@pytest.mark.thorough
def test_the_table_of_precisions_has_speed_memory_and_equality(
    calibrated: Path, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "precisions.json"
    options = ["--timed", "4", "--verified", "3", "--branched", "3", "--threads", "1"]
    options += ["--max-new-tokens", "100"]  # enough for a text that repeats itself
    files = [str(calibrated), "--prompts", str(questions), "--out", str(out)]
    assert precisions.main([*files, *options]) == 0
    (row,) = json.loads(out.read_text())["engines"].values()
    assert row["tokens_per_step"] > 1
    assert row["tree_tokens_per_second"] > 0 < row["ar_tokens_per_second"]
    assert 20 < row["peak_megabytes"] < 2000
    assert row["megabytes"] < 1
    for mode in ("exact", "tree"):
        for adapter in ("own adapter", "random adapter"):
            counts = row["verify"][mode][adapter]
            assert counts["identical"] + len(counts["margins"]) == counts["prompts"] == 3
    assert row["verify"]["exact"]["random adapter"]["identical"] == 3


def test_single_answers_are_equal_with_and_without_drafts(
    calibrated: Path, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.json"
    files = [str(calibrated), "--prompts", str(questions), "--out", str(out)]
    options = ["--limit", "2", "--turns", "2", "--max-new-tokens", "20", "--threads", "1"]
    report = single_answers.measure(single_answers.parse_arguments([*files, *options]))
    assert report["same_text"]
    assert [answer["tokens"] for answer in report["answers"]] == [19, 19]
    for spread in (report["with_drafts"], report["plainly_again"]):
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
