"""Progress bars on standard error, where that is a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from bita.progress import OnProgress


class Bar:
    """One bar; `start` and `add` may be handed on as callbacks."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=None)

    def start(self, total: int) -> None:
        self._progress.update(self._task, total=total)

    def add(self, amount: int) -> None:
        self._progress.advance(self._task, amount)


@contextmanager
def progress_bar(label: str) -> Iterator[Bar]:
    """A bar that is shown while the block runs; nothing is printed where nobody looks."""
    with _progress() as progress:
        yield Bar(progress, label)


@contextmanager
def progress_bars() -> Iterator[OnProgress]:
    """Gives a function (label, done, total) that shows a bar for each stage.

    The stage is the label up to a comma; what follows the comma may change.
    """
    with _progress() as progress:
        stages: dict[str, TaskID] = {}

        def show(label: str, done: int, total: int) -> None:
            stage = label.split(",")[0]
            if stage not in stages:
                stages[stage] = progress.add_task(label, total=total, completed=done)
            progress.update(stages[stage], description=label, completed=done, total=total)

        yield show


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
