"""Tests of `make bench`: figures computed by hand, a resumable journal, workers that answer."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from peer_process import Contestant, PeerError, Worker
from peer_report import Run, describe_machine, summarize, table
from peers import Journal, contestants_of
from result_pages import filled, peers

from bita.data.prompts import evenly
from bita.runtime.session import Session

PLAIN = Run([1, 2, 3], [10.0, 20.0, 30.0])  # 100 tokens/s
SLOW = Run([1, 2, 3], [10.0, 30.0, 50.0])  # 50
FAST = Run([1, 2, 3], [10.0, 10.0, 20.0])  # 200
OTHER = Run([1, 2, 4], [5.0, 5.0, 10.0])  # 400, another text
NOTHING = Run([], [])


def summary() -> dict[str, Any]:
    described = {
        "plain": {"plain": "plain", "disk_mb": 1.0, "start_ms": 5.0, "memory": {"peak_mb": 7.0}},
        "drafts": {"plain": "plain", "disk_mb": 1.0, "start_ms": 5.0, "memory": {"peak_mb": 7.0}},
    }
    rounds = [
        {"plain": PLAIN, "drafts": FAST},
        {"plain": SLOW, "drafts": OTHER},
        {"plain": NOTHING, "drafts": NOTHING},
    ]
    prefills = [{"plain": 8.0, "drafts": 9.0}, {"plain": 10.0, "drafts": 9.0}]
    return summarize(described, rounds, prefills)


def test_figures_are_taken_over_all_answers_together() -> None:
    plain, drafts = summary()["plain"], summary()["drafts"]
    assert plain["tokens_per_second"]["mean"] == pytest.approx(1000 * 4 / 60, abs=1e-3)
    assert drafts["tokens_per_second"]["mean"] == pytest.approx(1000 * 4 / 15, abs=1e-3)
    assert drafts["times_plain"]["mean"] == pytest.approx(4.0, abs=1e-3)
    low, high = (plain["tokens_per_second"][end] for end in ("low", "high"))
    assert low == pytest.approx(50, abs=1e-3)
    assert high == pytest.approx(100, abs=1e-3)
    assert (plain["same_text"], drafts["same_text"], drafts["n"]) == (3, 2, 3)
    assert plain["times_plain"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert plain["prefill_512_ms"]["p50"] == 9.0
    assert drafts["first_token_ms"]["p50"] == 7.5


def test_a_journal_continues_after_a_killed_run(tmp_path: Path) -> None:
    path, settings = tmp_path / "journal.jsonl", {"threads": 2}
    journal = Journal(path, settings)
    assert journal.get("answers", "0") is None
    journal.add("answers", "0", {"plain": [[1], [2.0]]})
    with path.open("a") as file:
        file.write('{"stage": "answers", "key": "1", "val')  # a run that was killed
    again = Journal(path, settings)
    assert again.get("answers", "0") == {"plain": [[1], [2.0]]}
    assert again.get("answers", "1") is None
    assert again.stage("answers") == {"0": {"plain": [[1], [2.0]]}}
    assert Journal(path, {"threads": 1}).get("answers", "0") is None


def test_a_truncated_journal_accepts_further_records(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, {}).add("start", "a", 1)
    with path.open("a") as file:
        file.write('{"stage": "start", "key"')
    Journal(path, {}).add("start", "b", 2)
    again = Journal(path, {})
    assert (again.get("start", "a"), again.get("start", "b")) == (1, 2)


def contestant(engine: Path, **settings: Any) -> Contestant:
    return Contestant("ours", "bita-edge", sys.executable, engine, "ours", settings)


def test_a_worker_answers_as_the_session_does(tiny_engine: Path, tmp_path: Path) -> None:
    session = Session.open(tiny_engine, num_threads=1)
    ids = list(range(5, 25))
    expected = session.generate(ids, 12).token_ids
    worker = Worker(contestant(tiny_engine), 1, tmp_path / "log")
    try:
        run = worker.generate(ids, 12, session.eos_ids)
        cut = worker.generate(ids, 12, [expected[4]])
        about = worker.about()
    finally:
        worker.close()
    wanted = [token for token in expected if token not in session.eos_ids]
    assert run.token_ids == wanted
    assert cut.token_ids == expected[: expected.index(expected[4])]
    assert run.token_ms == sorted(run.token_ms)
    assert about["memory"]["peak_mb"] > 20
    assert "bita-edge" in about["versions"]
    assert worker.open_ms > 0


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"ours: EngineError: .*is not a directory"):
        Worker(contestant(tmp_path / "nothing"), 1, tmp_path / "log")


def test_each_row_names_its_row_of_plain_decoding(tiny_engine: Path, tmp_path: Path) -> None:
    args = argparse.Namespace(
        engines=[tiny_engine],
        python_peers="python",
        python_optimum="python",
        work_dir=tmp_path,
        gguf=tmp_path / "m.Q4_1.gguf",
        llama_cpp=tmp_path,
        only=None,
    )
    rows = contestants_of(args)
    names = [row.name for row in rows]
    assert len({*names}) == len(names) == 14
    assert all(row.plain in names for row in rows)
    args.only = ["fp32"]
    engines = ["bita-edge"] * 2 + ["transformers"] * 2 + ["optimum-onnx"]
    assert [row.engine for row in contestants_of(args)] == engines


def test_prompts_are_evenly_spaced() -> None:
    assert evenly(range(10), 3) == [0, 3, 6]
    assert evenly(range(3), None) == evenly(range(3), 8) == [0, 1, 2]


def test_the_page_has_a_line_for_each_row() -> None:
    report = {
        **describe_machine(1),
        "engines": summary(),
        "model": "m.Q4_1.gguf",
        "threads": 1,
        "new_tokens": 4,
        "num_prompts": 3,
        "prompts": "p.jsonl",
    }
    lines = peers(json.loads(json.dumps(report))).splitlines()
    assert [
        line.split(" | ")[0] for line in lines if line.startswith("| ") and "---" not in line
    ] == [
        "| engine",
        "| plain",
        "| drafts",
    ]
    assert "4.00" in lines[-1]
    assert table(report)[2][1] == f"{1000 * 4 / 15:.1f}"
    assert np.isfinite(report["read_gb_per_s"])


def test_a_page_keeps_what_is_around_its_tables() -> None:
    page = "before\n<!-- results: gpu -->\nold\n<!-- end -->\nafter\n"
    text = filled(page)
    assert text.startswith("before\n<!-- results: gpu -->\n| fp16 |")
    assert text.endswith("|\n<!-- end -->\nafter\n")
    assert "old" not in text
    assert filled(text) == text


@pytest.mark.parametrize(
    ("option", "message"),
    [("PROMPTS=none.jsonl", "PROMPTS none.jsonl does not exist"), ("LIMIT=0", "LIMIT 0 is not")],
)
def test_make_bench_checks_its_options_first(option: str, message: str) -> None:
    """Wrong options are reported before minutes of building."""
    root = ROOT
    run = subprocess.run(
        ["make", "--no-print-directory", "bench", option], cwd=root, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert message in run.stderr
    assert run.stdout == ""
