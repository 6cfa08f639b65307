"""The default number of threads.

ONNX Runtime uses one thread for each physical core of the machine. In a container or under
`taskset` fewer may be available, and threads that wait for each other on one core are slower than a
single thread.
"""

import os
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # control groups version 2


def default_threads(topology: Path = TOPOLOGY, quota: Path = QUOTA) -> int:
    """Return the default number of threads; 0: one per physical core.

    If the process may not use all processors, it is the number of cores that it may use, limited by
    its control group's quota.
    """
    allowed = _allowed_processors()
    share = _quota(quota)
    if share is None and len(allowed) == (os.cpu_count() or 1):
        return 0
    cores = {_siblings(number, topology) for number in allowed}
    return max(1, min(len(cores), int(share or len(cores))))


def _allowed_processors() -> set[int]:
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # not supported by this system
        return set(range(os.cpu_count() or 1))


def _siblings(number: int, topology: Path) -> str:
    """Return an identifier of a processor's physical core; the processor's number if unknown."""
    path = topology / f"cpu{number}" / "topology" / "thread_siblings_list"
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return str(number)


def _quota(path: Path) -> float | None:
    """Return how many processors the control group may use; None: no limit below the machine's."""
    try:
        words = path.read_text(encoding="ascii").split()
        share = int(words[0]) / int(words[1])
    except (OSError, ValueError, IndexError, ZeroDivisionError):  # no file, or "max"
        return None
    return share if 0 < share < (os.cpu_count() or 1) else None
