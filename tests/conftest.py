"""Settings, markers and fixtures that several test files share."""

import os
import re
from functools import cache
from pathlib import Path

import pytest

# The libraries read these variables at import, so they are set first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    from one_thread import use_one_thread

    use_one_thread()

from make_tiny_engine import TINY_ENGINE

from bita.data.prompts import CALIBRATION_PROMPTS

HEAVY = re.compile(r"(importorskip\(\"|import |from )(torch|transformers|tensorrt_rtx)\b")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need torch or similar packages, so that others can run without them."""
    for item in items:
        if _needs_torch(item.path):
            item.add_marker(pytest.mark.torch)


@cache
def _needs_torch(path: Path) -> bool:
    return bool(HEAVY.search(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def tiny_engine() -> Path:
    """Return a random Llama engine: 2 layers, fp32, C = 384, 3 masks, prefix 2, tree (5,4,3)."""
    return TINY_ENGINE


@pytest.fixture
def few_bonus_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Fit the bonuses of tuned adapters on six bundled prompts instead of all."""
    lines = CALIBRATION_PROMPTS.read_text(encoding="utf-8").splitlines(keepends=True)
    file = tmp_path_factory.mktemp("bonuses") / "prompts.jsonl"
    file.write_text("".join(lines[:6]), encoding="utf-8")
    monkeypatch.setattr("bita.tuning.tune.CALIBRATION_PROMPTS", file)
