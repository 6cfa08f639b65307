"""How much an engine is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Limits of a calibration's measurements."""

    num_prompts: int = 60  # read from the prompt file; a third of them is to time trees on
    max_new_tokens: int = 96  # of each answer
    repeats: int = 5  # turns in which each size of step is timed
    max_rows: int = 128  # of the steps that are timed
