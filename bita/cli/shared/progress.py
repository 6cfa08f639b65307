"""Progress on standard error: bars on a terminal, else a plain line every ten seconds."""

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

from bita.cli.shared.output import is_terminal
from bita.progress import OnProgress

SECONDS = 10.0  # between two lines, and before the first


@dataclass
class _Task:
    label: str
    total: float | None
    done: float
    began: float  # time of the start
    begun_with: float  # units that were done at the start, by an earlier run
    is_shown: bool = False  # whether a line was printed
    is_over: bool = False  # whether the last line was printed

    def remaining_seconds(self, elapsed: float) -> float | None:
        """Time left at the speed so far; None if unknown."""
        fresh = self.done - self.begun_with
        if self.total is None or fresh <= 0:
            return None
        return elapsed * max(self.total - self.done, 0) / fresh


class Lines:
    """Progress for logs: a line every SECONDS while work is slow, and one when a stage is done.

    It has the methods of rich's `Progress` that are used here. Work of less than SECONDS prints
    nothing. A stage is done when all of its units are, when the next one starts, or at `finish`.
    """

    def __init__(self, announces: bool = False) -> None:
        """Start the clock; `announces` prints a line when a stage starts."""
        self._announces = announces
        self._tasks: list[_Task] = []
        self._printed_at = monotonic()

    def add_task(
        self, description: str, *, total: float | None = None, completed: int = 0
    ) -> TaskID:
        self.finish()
        self._tasks.append(_Task(description, total, completed, monotonic(), completed))
        if self._announces:
            self._print(f"{description} ...")
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
        self._report(task)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        task = self._tasks[task_id]
        task.done += advance
        self._report(task)

    def finish(self) -> None:
        """Print the last line of stages that have printed one before."""
        for task in self._tasks:
            if task.is_shown and not task.is_over:
                self._print_end(task)

    def _report(self, task: _Task) -> None:
        now = monotonic()
        if task.total is not None and task.done >= task.total:
            if not task.is_over and now - task.began >= SECONDS:
                self._print_end(task)
        elif now - self._printed_at >= SECONDS:
            task.is_shown, task.is_over = True, False
            elapsed = now - task.began
            left = task.remaining_seconds(elapsed)
            rest = "" if left is None else f", about {clock(left)} left"
            self._print(f"{task.label}: {_count(task)}, {clock(elapsed)} elapsed{rest}")

    def _print_end(self, task: _Task) -> None:
        task.is_over = True
        self._print(f"{task.label}: done in {clock(monotonic() - task.began)}")

    def _print(self, line: str) -> None:
        self._printed_at = monotonic()
        print(line, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Return a duration as 1:05, or 2:01:05 with hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _count(task: _Task) -> str:
    return f"{task.done:.0f}" if task.total is None else f"{task.done:.0f}/{task.total:.0f}"


_Display = Progress | Lines


class Bar:
    """One stage of work. `start` and `add` can be passed on as callbacks."""

    def __init__(self, progress: _Display, label: str) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=None)

    def start(self, total: int) -> None:
        self._progress.update(self._task, total=total)

    def add(self, amount: int) -> None:
        self._progress.advance(self._task, amount)


@contextmanager
def progress_bar(label: str) -> Iterator[Bar]:
    """Show the progress of one stage while the block runs."""
    with _progress() as progress:
        yield Bar(progress, label)


@contextmanager
def progress_bars(announces: bool = False) -> Iterator[OnProgress]:
    """Yield a function (label, done, total) that shows the progress of each stage.

    The stage is the label up to a comma; the text after the comma may change. `announces` prints a
    line when a stage starts, where there is no terminal.
    """
    with _progress(announces) as progress:
        stages: dict[str, TaskID] = {}

        def show(label: str, done: int, total: int) -> None:
            stage = label.split(",")[0]
            if stage not in stages:
                stages[stage] = progress.add_task(label, total=total, completed=done)
            progress.update(stages[stage], description=label, completed=done, total=total)

        yield show


@contextmanager
def _progress(announces: bool = False) -> Iterator[_Display]:
    console = Console(stderr=True)
    if not is_terminal(sys.stderr) or console.is_dumb_terminal:
        lines = Lines(announces)
        yield lines
        lines.finish()  # not after an error
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield progress
