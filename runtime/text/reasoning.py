"""Where a model's thinking begins and ends in its answer, read from its chat template."""

from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<think>", "</think>"
SWITCH = "enable_thinking"  # the variable of templates that can do without
EFFORT = "reasoning_effort"


@dataclass(frozen=True)
class Reasoning:
    """How an answer's thinking is marked. starts_inside: whether the prompt has opened it."""

    starts_inside: bool = False
    opening: str = OPEN
    closing: str = CLOSE


def reasoning_of(template: str, prompt: str) -> Reasoning | None:
    """How the answer to a prompt that a template made is thought about; None where the template
    knows of no thinking, or the prompt has ended it.
    """
    end = prompt.rstrip()
    if (CLOSE not in template and OPEN not in template) or end.endswith(CLOSE):
        return None
    return Reasoning(starts_inside=end.endswith(OPEN))


def effort_variables(template: str, effort: str | None) -> dict[str, Any]:
    """What `reasoning_effort` sets of a template's variables; nothing where it has none."""
    if effort is None:
        return {}
    found: dict[str, Any] = {EFFORT: effort} if EFFORT in template else {}
    if effort == "none" and SWITCH in template:
        found[SWITCH] = False
    return found
