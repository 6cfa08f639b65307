"""What a comparison of engines reports: the machine, the figures of each engine, a table."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

OURS = "bita"
_CPU_FLAGS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "sve", "sve2"),
)


@dataclass
class Run:
    """One answer: its tokens, and when each was known, in ms since the request."""

    token_ids: list[int]
    token_ms: list[float]

    @property
    def tokens_per_second(self) -> float:
        return 1000 * (len(self.token_ms) - 1) / (self.token_ms[-1] - self.token_ms[0])


def summarize(
    descriptions: dict[str, dict[str, Any]], rounds: Sequence[dict[str, Run]]
) -> dict[str, dict[str, Any]]:
    """Figures of each engine; ratios and common tokens are to ours, or else to the first engine."""
    reference = OURS if OURS in descriptions else next(iter(descriptions))
    report = {}
    for name, description in descriptions.items():
        runs = [runs_by_name[name] for runs_by_name in rounds]
        others = [runs_by_name[reference] for runs_by_name in rounds]
        pairs = list(zip(runs, others, strict=True))
        steps_ms = [ms for run in runs for ms in np.diff(run.token_ms)]
        report[name] = {
            **description,
            "n": len(runs),
            "tokens_per_second": _quantiles([run.tokens_per_second for run in runs]),
            "token_ms": _quantiles(steps_ms),
            "first_token_ms": _quantiles([run.token_ms[0] for run in runs]),
            "ratio_to": reference,
            "ratio": _quantiles([a.tokens_per_second / b.tokens_per_second for a, b in pairs]),
            "common_first_tokens": statistics.median(_num_common(a, b) for a, b in pairs),
        }
    return report


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (5, 25, 50, 75, 95)}


def _num_common(run: Run, other: Run) -> int:
    pairs = zip(run.token_ids, other.token_ids, strict=True)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def print_table(report: dict[str, Any]) -> None:
    """One line per engine."""
    engines = report["engines"]
    ratio_to = next(iter(engines.values()))["ratio_to"]
    print(f"\n{report['cpu']}, {report['threads']} threads, {report['new_tokens']} new tokens")
    columns = ("engine", "tok/s p50", "p95", f"/ {ratio_to}", "p25-p75", "first ms", "precision")
    widths = (18, 10, 7, 8, 12, 9, 0)
    print(" ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True)))
    for name, figures in engines.items():
        rate, ratio = figures["tokens_per_second"], figures["ratio"]
        cells = (
            *(name, f"{rate['p50']:.1f}", f"{rate['p95']:.1f}", f"{ratio['p50']:.3f}"),
            *(f"{ratio['p25']:.2f}-{ratio['p75']:.2f}", f"{figures['first_token_ms']['p50']:.1f}"),
            figures["precision"],
        )
        print(" ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)))


def describe_machine(num_threads: int) -> dict[str, Any]:
    """What a timing has to carry, besides what was run."""
    commit = _output(["git", "describe", "--always", "--dirty", "--abbrev=12"])
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or "unknown",
        "command": " ".join(["python", *sys.argv]),
        "device": _text("/proc/device-tree/model") or platform.node(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "cpu_flags": _cpu_flags(),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown",
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "read_gb_per_s": round(read_bandwidth(num_threads), 1),
    }


def read_bandwidth(num_threads: int, num_bytes: int = 256 << 20, repeats: int = 5) -> float:
    """GB/s at which so many threads read memory together: the ceiling of decoding."""
    blocks = [np.ones(num_bytes // 8, np.int64) for _ in range(num_threads)]
    best_seconds = float("inf")
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, blocks))
            best_seconds = min(best_seconds, time.perf_counter() - start)
    return num_threads * num_bytes / best_seconds / 1e9


def _cpu_model() -> str:
    names = [line for line in _text("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor() or "unknown"


def _cpu_flags() -> list[str]:
    words = set(_text("/proc/cpuinfo").split())
    return [flag for flag in _CPU_FLAGS if flag in words]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
