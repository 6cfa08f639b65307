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


def reasoning_of(template: str, prompt: str, begun: str | None = None) -> Reasoning | None:
    """How the answer to a prompt that a template made is thought about; None where the template
    knows of no thinking, or the thinking is over.

    begun: the text of the answer that the prompt has, where it is to be continued.
    """
    if CLOSE not in template and OPEN not in template:
        return None
    if begun is not None and begun.strip():
        is_open = begun.rfind(OPEN) > begun.rfind(CLOSE)
        return Reasoning(starts_inside=True) if is_open else None
    end = prompt.rstrip()
    return None if end.endswith(CLOSE) else Reasoning(starts_inside=end.endswith(OPEN))


def effort_variables(template: str, effort: str | None) -> dict[str, Any]:
    """What `reasoning_effort` sets of a template's variables; nothing where it has none."""
    if effort is None:
        return {}
    found: dict[str, Any] = {EFFORT: effort} if EFFORT in template else {}
    if effort == "none" and SWITCH in template:
        found[SWITCH] = False
    return found
