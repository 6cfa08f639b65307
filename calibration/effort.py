"""How much an engine is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """num_prompts: read from the prompt file, a third of them to time trees on.

    max_new_tokens: of each answer. repeats: turns in which each size of step is timed. most_rows:
    of the steps that are timed.
    """

    num_prompts: int = 60
    max_new_tokens: int = 96
    repeats: int = 8
    most_rows: int = 128
