"""Engines that several test files share."""

from pathlib import Path

import pytest
from make_tiny_engine import TINY_ENGINE


@pytest.fixture(scope="session")
def tiny_engine() -> Path:
    """A random Llama of two layers, fp32, C = 384, three masks, prefix of 2, tree (5,4,3)."""
    return TINY_ENGINE
