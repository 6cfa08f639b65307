"""Progress on standard error: bars on a terminal, else a line now and then."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

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

SECONDS = 30.0  # between two lines


@dataclass
class _Task:
    label: str
    total: float | None
    done: float


class _Lines:
    """Progress for logs: long work prints a line every SECONDS that says how far it is.

    It has the methods of rich's `Progress` that are used here.
    """

    def __init__(self) -> None:
        self._tasks: list[_Task] = []
        self._said_at = monotonic()

    def add_task(
        self, description: str, *, total: float | None = None, completed: int = 0
    ) -> TaskID:
        self._tasks.append(_Task(description, total, completed))
        return TaskID(len(self._tasks) - 1)

    def update(
        self,
        task_id: TaskID,
        *,
        total: float | None = None,
        completed: float | None = None,
        description: str | None = None,
    ) -> None:
        task = self._tasks[task_id]
        task.total = task.total if total is None else total
        task.done = task.done if completed is None else completed
        task.label = description or task.label
        self._say(task)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        task = self._tasks[task_id]
        task.done += advance
        self._say(task)

    def _say(self, task: _Task) -> None:
        now = monotonic()
        if now - self._said_at < SECONDS:
            return
        self._said_at = now
        total = "" if task.total is None else f" of {task.total:.0f}"
        print(f"{task.label}: {task.done:.0f}{total}", file=sys.stderr, flush=True)


_Shown = Progress | _Lines


class Bar:
    """One bar; `start` and `add` may be handed on as callbacks."""

    def __init__(self, progress: _Shown, label: str) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=None)

    def start(self, total: int) -> None:
        self._progress.update(self._task, total=total)

    def add(self, amount: int) -> None:
        self._progress.advance(self._task, amount)


@contextmanager
def progress_bar(label: str) -> Iterator[Bar]:
    """A bar that is shown while the block runs."""
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


@contextmanager
def _progress() -> Iterator[_Shown]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield progress
