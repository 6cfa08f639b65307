"""`bita profile --max-seconds` keeps to the time and reports what it left out."""

import json
from pathlib import Path
from typing import Any

import pytest

from bita.calibration.profiling.time_bound import ANSWERS_END, TimeBound
from bita.cli.main import main
from bita.errors import BitaError

SHORT = ("--threads", "1", "--max-new-tokens", "8")


class Clock:
    """A clock that advances by `step` seconds each time it is read."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def run_profile(path: Path, engine: Path, *args: object) -> dict[str, Any]:
    """Run `bita profile` and return its report on the engine, which it writes to `path`."""
    words = ["profile", engine, *SHORT, "--json", path, *args]
    assert main([*map(str, words)]) == 0
    (report,) = json.loads(path.read_text())["engines"]
    return dict(report)


def test_stages_share_the_time() -> None:
    clock = Clock()
    bound = TimeBound(100, clock)
    clock.now = 50
    assert bound.left() == 50
    assert bound.left(ANSWERS_END) == pytest.approx(35)
    bound.require("steps")
    clock.now = 100
    assert bound.is_over
    with pytest.raises(
        BitaError, match=r"--max-seconds 100 was over before the steps, after 100\.0 s; give at le"
    ):
        bound.require("steps")
    assert not TimeBound(None, clock).is_over


@pytest.mark.slow
def test_a_profile_with_enough_time_leaves_nothing_out(tiny_engine: Path, tmp_path: Path) -> None:
    args = ("--limit", "3", "--latency-seconds", "1", "--max-rows", "4", "--max-seconds", "300")
    report = run_profile(tmp_path / "p.json", tiny_engine, *args)
    assert report["left_out"] == []
    assert report["memory"]["decoding"]["host"] > 10e6


def test_a_time_too_short_for_the_steps_is_an_error(
    tiny_engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_clock(monkeypatch, Clock(step=1))
    assert main(["profile", str(tiny_engine), *SHORT, "--max-seconds", "1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--max-seconds 1 was over before the steps" in err.splitlines()[-1]


def test_a_short_profile_has_every_stage_and_lists_what_it_left_out(
    tiny_engine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The clock advances by a second whenever it is read."""
    use_clock(monkeypatch, Clock(step=1))
    pytest.importorskip("plotly")
    page = tmp_path / "page.html"
    args = ("--latency-seconds", "1", "--max-seconds", "30", "--page", page)
    report = run_profile(tmp_path / "p.json", tiny_engine, *args)
    out, err = capsys.readouterr()
    assert report["latency"]["rows"]
    assert report["prefill"]["tokens"][0] == 16
    ar, trees = report["decode"]["AR"], report["decode"]["trees"]
    assert 1 <= len(ar["answers"]) == len(trees["answers"]) < 20
    left_out = report["left_out"]
    assert f"answers: {20 - len(ar['answers'])} of 20 prompts" in left_out
    assert f"left out: {'; '.join(left_out)}" in out
    assert page.is_file()
    stages = [line for line in err.splitlines() if line.endswith(" ...")]
    assert stages[:4] == ["opening ...", "steps ...", "prefill ...", "warm-up ..."]


def test_operators_and_memory_are_left_out_when_the_time_is_over(
    tiny_engine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from bita.calibration.profiling import measure

    clock = Clock()
    use_clock(monkeypatch, clock)
    time_answers = measure.time_answers

    def time_answers_slowly(*args: Any) -> Any:
        clock.now = 1000
        return time_answers(*args)

    monkeypatch.setattr(measure, "time_answers", time_answers_slowly)
    args = ("--latency-seconds", "1", "--max-rows", "2", "--max-seconds", "900")
    report = run_profile(tmp_path / "p.json", tiny_engine, *args)
    assert len(report["decode"]["AR"]["answers"]) == 1
    assert report["operators"] == {}
    assert report["memory"]["decoding"] is None
    assert report["memory"]["engine_bytes"] > 1e5
    assert "memory" in report["left_out"]
    assert "operators of: AR step" in report["left_out"]
    assert "not measured" in capsys.readouterr().out


def use_clock(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Make the time bound of each profile in this test read `clock`."""
    from bita.calibration.profiling import time_bound

    class Timed(TimeBound):
        def __init__(self, seconds: float | None = None) -> None:
            super().__init__(seconds, clock)

    monkeypatch.setattr(time_bound, "TimeBound", Timed)
