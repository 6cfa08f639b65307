"""Progress where standard error is not a terminal: a line every ten seconds."""

import pytest

from bita.cli.shared import progress
from bita.cli.shared.progress import SECONDS, progress_bar, progress_bars


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock; the one item of the list is its time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_short_work_prints_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as show:
        for done in range(4):
            show("steps", done, 3)
            clock[0] += SECONDS / 5
    assert capsys.readouterr().err == ""


def test_long_work_prints_its_progress_and_its_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bars() as show:
        for done in range(1, 11):
            clock[0] += SECONDS / 2
            show(f"training, loss {10 - done}", done, 10)
        show("verify", 1, 2)
    assert capsys.readouterr().err.splitlines() == [
        "training, loss 8: 2/10, 0:05 elapsed, about 0:40 left",
        "training, loss 6: 4/10, 0:15 elapsed, about 0:30 left",
        "training, loss 4: 6/10, 0:25 elapsed, about 0:20 left",
        "training, loss 2: 8/10, 0:35 elapsed, about 0:10 left",
        "training, loss 0: done in 0:45",
    ]


def test_a_stage_is_done_when_the_next_one_starts(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bars() as show:
        show("answers", 0, 3)
        clock[0] += 3661
        show("answers", 2, 3)
        clock[0] += 1
        show("memory", 0, 1)
    assert capsys.readouterr().err.splitlines() == [
        "answers: 2/3, 1:01:01 elapsed, about 30:30 left",
        "answers: done in 1:01:02",
    ]


def test_a_resumed_run_estimates_its_end_from_its_own_work(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bars() as show:
        show("answers", 80, 100)
        clock[0] += 20
        show("answers", 90, 100)
    first, _ = capsys.readouterr().err.splitlines()
    assert first == "answers: 90/100, 0:20 elapsed, about 0:20 left"


def test_a_failed_stage_is_not_reported_as_done(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        with progress_bars() as show:
            show("answers", 0, 3)
            clock[0] += SECONDS
            show("answers", 1, 3)
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert "done" not in capsys.readouterr().err


def test_the_length_of_a_bar_may_become_known_later(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("tokens") as bar:
        clock[0] += SECONDS
        bar.add(3)
        bar.start(1234567)
        clock[0] += SECONDS
        bar.add(1000000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tokens: 3, 0:10 elapsed"
    assert lines[1].startswith("tokens: 1000003/1234567, 0:20 elapsed, about 0:")
    assert lines[2] == "tokens: done in 0:20"


def test_stages_can_be_announced(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars(announces=True) as show:
        show("steps", 0, 3)
        show("steps", 1, 3)
        show("answers", 0, 3)
    assert capsys.readouterr().err.splitlines() == ["steps ...", "answers ..."]
