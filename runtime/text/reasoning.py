"""Marks of a model's thinking in its answer, read from its chat template."""

from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<think>", "</think>"
SWITCH = "enable_thinking"  # variable of templates with optional thinking
EFFORT = "reasoning_effort"


@dataclass(frozen=True)
class Reasoning:
    """The marks around an answer's thinking."""

    starts_inside: bool = False  # whether the prompt has already opened the thinking
    opening: str = OPEN
    closing: str = CLOSE


def reasoning_of(template: str, prompt: str, begun: str | None = None) -> Reasoning | None:
    """Return how thinking is marked in the answer to a prompt.

    Args:
        template: Source of the chat template.
        prompt: The prompt that it rendered.
        begun: Beginning of the answer within the prompt, if it is to be continued; else None.

    Returns:
        The marks, or None if the template has no thinking or the thinking is over.
    """
    if CLOSE not in template and OPEN not in template:
        return None
    if begun is not None and begun.strip():
        is_open = begun.rfind(OPEN) > begun.rfind(CLOSE)
        return Reasoning(starts_inside=True) if is_open else None
    end = prompt.rstrip()
    return None if end.endswith(CLOSE) else Reasoning(starts_inside=end.endswith(OPEN))


def effort_variables(template: str, effort: str | None) -> dict[str, Any]:
    """Return the template variables that `reasoning_effort` sets; {} if there are none."""
    if effort is None:
        return {}
    found: dict[str, Any] = {EFFORT: effort} if EFFORT in template else {}
    if effort == "none" and SWITCH in template:
        found[SWITCH] = False
    return found
