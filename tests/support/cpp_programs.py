"""Programs that are built with libbita for tests, in build/cpp."""

from pathlib import Path

import pytest

BUILD = Path(__file__).resolve().parents[2] / "build" / "cpp"


def cpp_program(name: str) -> Path:
    """A program's file; the test is skipped where it was not built (`make cpp-programs`)."""
    path = BUILD / name
    if not path.is_file():
        pytest.skip(f"{path} is not built: make cpp-programs")
    return path
