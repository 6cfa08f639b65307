"""Threads that share an engine of libbita, each with its own sessions; also with sanitizers."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from answer_tool import onnxruntime_library
from native_engines import FEATURES, native_engine, require_library
from paths import ROOT

SUPPRESSIONS = ROOT / "runtime" / "native" / "library_tests" / "thread_suppressions.txt"
SANITIZERS = {
    "ASAN_OPTIONS": "detect_leaks=1",
    "LSAN_OPTIONS": "suppressions=/dev/null",
    "TSAN_OPTIONS": f"suppressions={SUPPRESSIONS}",
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_library()
    return native_engine(FEATURES["long"], tmp_path_factory.mktemp("native"), "int4", 160).path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "answers"),
    [
        ("cpp", 200),
        pytest.param("cpp-address", 40, marks=pytest.mark.thorough),
        pytest.param("cpp-thread", 16, marks=pytest.mark.slow),
    ],
)
def test_threads_give_the_same_answers_as_one_thread(
    build: str, answers: int, engine: Path
) -> None:
    program = ROOT / "build" / build / "threads_tool"
    if not program.is_file():
        pytest.skip(f"{program} is not built: make cpp-programs, or make cpp-check")
    result = subprocess.run(
        [str(program), str(onnxruntime_library()), str(engine), str(answers), "4"],
        capture_output=True,
        text=True,
        timeout=540,
        env={**os.environ, **SANITIZERS},
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    counts = json.loads(result.stdout)
    assert counts["answers"] == answers
    assert counts["wrong"] == 0
    assert counts["cancelled"] > 0
