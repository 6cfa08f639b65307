"""How work that takes long says how far it is."""

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]  # stage, steps of it that are done, steps in all
OnCount = Callable[[int, int], None]  # the same for work of one stage, which its caller names


def ignore_progress(stage: str, done: int, total: int) -> None:
    """Do nothing: nobody wants to know."""


def ignore_count(done: int, total: int) -> None:
    """Do nothing: nobody wants to know."""
