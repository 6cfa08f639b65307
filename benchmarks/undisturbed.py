"""Time runs on a shared machine, dropping those that other processes disturbed."""

import os
import time
from collections.abc import Callable
from pathlib import Path

BURST_SECONDS = 0.12  # runs are accepted or dropped in bursts, since /proc has ticks of 10 ms
MAX_OTHERS = 0.1  # processors that others may keep busy, in addition to those the run leaves idle
PATIENCE = 8.0  # seconds after which the least disturbed burst is accepted
PAUSE = 0.2  # seconds to wait after a disturbed burst


def min_seconds(
    run: Callable[[], object], num_threads: int = 1, bursts: int = 2
) -> tuple[float, float]:
    """Return the minimum seconds of a run, and the processors that others kept busy meanwhile.

    Runs are timed in bursts until `bursts` of them were undisturbed, which means that others left
    `num_threads` processors idle. After PATIENCE the least disturbed burst counts.
    """
    limit = (os.cpu_count() or 1) - num_threads + MAX_OTHERS
    run()
    began, kept, found = time.perf_counter(), list[float](), list[tuple[float, float]]()
    while len(kept) < bursts:
        seconds, others = _burst(run)
        found.append((others, seconds))
        if others <= limit:
            kept.append(seconds)
        elif time.perf_counter() - began > PATIENCE:
            others, seconds = min(found)
            return seconds, others
        else:
            time.sleep(PAUSE)
    return min(kept), max(others for others, _ in found if others <= limit)


def _burst(run: Callable[[], object]) -> tuple[float, float]:
    """Return the minimum seconds of a burst's runs, and the processors that others kept busy."""
    others, own, began = _busy_seconds(), time.process_time(), time.perf_counter()
    least = float("inf")
    while time.perf_counter() - began < BURST_SECONDS:
        start = time.perf_counter()
        run()
        least = min(least, time.perf_counter() - start)
    elapsed = time.perf_counter() - began
    by_others = _busy_seconds() - others - (time.process_time() - own)
    return least, max(0.0, by_others / elapsed)


def _busy_seconds() -> float:
    """Return the seconds that all processors together were busy since the machine started."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
