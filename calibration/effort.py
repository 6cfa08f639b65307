"""Effort of measuring an engine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Limits of a calibration's measurements."""

    num_prompts: int = 60  # read from the prompt file; a third of them times trees
    max_new_tokens: int = 96  # limit of each answer
    repeats: int = 5  # rounds in which each step size is timed
    max_rows: int = 128  # limit of the steps that are timed
