"""Test cases that `make check` or `make test` leave out to stay fast."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Return the values of a parameter, all marked slow except those in `fast`."""
    return [v if v in fast else pytest.param(v, marks=pytest.mark.slow) for v in values]


def thorough_but(values: Iterable[Any], *usual: Any) -> list[Any]:
    """Return the values of a parameter, all marked thorough except those in `usual`."""
    return [v if v in usual else pytest.param(v, marks=pytest.mark.thorough) for v in values]
