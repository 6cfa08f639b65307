"""The default number of threads: the cores that the process may use, not those of the machine."""

from pathlib import Path

import pytest

from bita.runtime.backends import threads
from bita.runtime.backends.threads import default_threads

MISSING = Path("/nowhere")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Eight processors on four cores: 0 and 4 share a core, and so on."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for number in range(8):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    allow_processors(monkeypatch, range(8))
    return tmp_path


def allow_processors(monkeypatch: pytest.MonkeyPatch, numbers: object) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {*numbers}, raising=False)  # type: ignore[misc]


def test_an_unrestricted_process_leaves_the_choice_to_the_runtime(machine: Path) -> None:
    assert default_threads(machine, MISSING) == 0


@pytest.mark.parametrize(
    ("numbers", "expected"), [((0,), 1), ((0, 4), 1), ((0, 1), 2), (range(7), 4)]
)
def test_only_cores_that_the_process_may_use_are_counted(
    machine: Path, monkeypatch: pytest.MonkeyPatch, numbers: object, expected: int
) -> None:
    allow_processors(monkeypatch, numbers)
    assert default_threads(machine, MISSING) == expected


def test_without_a_topology_each_processor_counts_as_a_core(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_processors(monkeypatch, (0, 4, 5))
    assert default_threads(MISSING, MISSING) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("max 100000\n", 0), ("200000 100000\n", 2), ("250000 100000\n", 2)),
        *(("50000 100000\n", 1), ("800000 100000\n", 0), ("300000 0\n", 0), ("what\n", 0)),
        ("600000 100000\n", 4),  # not more than the number of cores
    ],
)
def test_the_quota_of_a_container_is_respected(machine: Path, text: str, expected: int) -> None:
    quota = machine / "cpu.max"
    quota.write_text(text)
    assert default_threads(machine, quota) == expected
