"""Callbacks by which long work reports its progress."""

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]  # stage, steps of it that are done, steps in all
OnCount = Callable[[int, int], None]  # the same for work of one stage, which its caller names


def ignore_progress(stage: str, done: int, total: int) -> None:
    """Do nothing."""


def ignore_count(done: int, total: int) -> None:
    """Do nothing."""
