"""Callbacks for the progress of long operations."""

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]  # stage, steps of the stage done, all its steps
OnCount = Callable[[int, int], None]  # steps done, all steps; for work that is a single stage


def ignore_progress(stage: str, done: int, total: int) -> None:
    """Do nothing."""


def ignore_count(done: int, total: int) -> None:
    """Do nothing."""
