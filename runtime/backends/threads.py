"""How many threads a process may run at a time.

ONNX Runtime takes one thread for each physical core of the machine. In a container or under
`taskset` there may be fewer, and threads that wait for each other on one core are slower than one
thread is.
"""

import os
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of control groups, version 2


def default_threads(topology: Path = TOPOLOGY, quota: Path = QUOTA) -> int:
    """Threads where nobody says how many: 0, for one per physical core, unless the process may not
    use all processors; then one for each core that it may use, within its group's quota.
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
    except AttributeError:  # not on this system
        return set(range(os.cpu_count() or 1))


def _siblings(number: int, topology: Path) -> str:
    """What names the physical core of a processor; the processor itself where that is not known."""
    path = topology / f"cpu{number}" / "topology" / "thread_siblings_list"
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return str(number)


def _quota(path: Path) -> float | None:
    """Processors that the control group may keep busy; None for no limit below the machine's."""
    try:
        words = path.read_text(encoding="ascii").split()
        share = int(words[0]) / int(words[1])
    except (OSError, ValueError, IndexError, ZeroDivisionError):  # none, or "max"
        return None
    return share if 0 < share < (os.cpu_count() or 1) else None
