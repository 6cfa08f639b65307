"""Cases of a test that `make check` leaves out, so that it stays fast; CI runs all of them."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(values: Iterable[Any], *fast: Any) -> list[Any]:
    """The values of a parameter, all of them marked slow but those of `fast`."""
    return [v if v in fast else pytest.param(v, marks=pytest.mark.slow) for v in values]
