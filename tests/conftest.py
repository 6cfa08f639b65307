"""Engines that several test files share."""

import os
from pathlib import Path

import pytest

# before anything imports onnxruntime, which reads it then
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    from one_thread import use_one_thread

    use_one_thread()

from make_tiny_engine import TINY_ENGINE


@pytest.fixture(scope="session")
def tiny_engine() -> Path:
    """A random Llama of two layers, fp32, C = 384, three masks, prefix of 2, tree (5,4,3)."""
    return TINY_ENGINE
