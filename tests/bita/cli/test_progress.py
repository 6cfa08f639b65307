"""Progress where standard error is no terminal: a line now and then."""

import pytest

from bita.cli.shared import progress
from bita.cli.shared.progress import SECONDS, progress_bar, progress_bars


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """[now], which a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_what_is_done_soon_says_nothing(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bars() as show:
        for done in range(4):
            show("steps", done, 3)
            clock[0] += SECONDS / 5
    assert capsys.readouterr().err == ""


def test_long_work_says_how_far_it_is(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bars() as show:
        for done in range(1, 11):
            clock[0] += SECONDS / 2
            show(f"training, loss {10 - done}", done, 10)
        show("verify", 1, 2)
    lines = [f"training, loss {10 - done}: {done} of 10" for done in (2, 4, 6, 8, 10)]
    assert capsys.readouterr().err.splitlines() == lines


def test_a_bar_of_unknown_length(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("tokens") as bar:
        clock[0] += SECONDS
        bar.add(3)
        bar.start(1234567)
        clock[0] += SECONDS
        bar.add(1000000)
    assert capsys.readouterr().err.splitlines() == ["tokens: 3", "tokens: 1000003 of 1234567"]
