"""Report a comparison of engines: the machine, the figures of each engine, and a table."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_CPU_FLAGS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "sve", "sve2"),
)
RESAMPLES = 2000
Figures = dict[str, Any]


@dataclass
class Run:
    """An answer and its timing."""

    token_ids: list[int]
    token_ms: list[float]  # time at which each token was known, in ms since the request

    @property
    def decoding(self) -> tuple[int, float]:
        """Number of tokens after the first, and the ms that they took."""
        if len(self.token_ms) < 2:
            return 0, 0.0
        return len(self.token_ms) - 1, self.token_ms[-1] - self.token_ms[0]

    @property
    def tokens_per_second(self) -> float:
        tokens, ms = self.decoding
        return 1000 * tokens / ms if ms else 0.0


def summarize(
    described: Mapping[str, Figures],
    rounds: Sequence[Mapping[str, Run]],
    prefills: Sequence[Mapping[str, float]],
) -> dict[str, Figures]:
    """Compute the figures of each row.

    Args:
        described: Descriptions of the rows by name, copied to the report. "plain" names the row of
            plain decoding that a row is compared with.
        rounds: Answers of all rows to each prompt.
        prefills: ms of all rows in each round of prefills.

    Returns:
        Figures by row. "tokens_per_second" is over all answers, with the 95 % interval of resampled
        prompts. "times_plain" is its ratio to plain decoding on the same resamples. "same_text"
        counts the answers that equal those of plain decoding.
    """
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(rounds), (RESAMPLES, len(rounds)))
    totals = {
        name: np.array([runs[name].decoding for runs in rounds], np.float64) for name in described
    }
    report = {}
    for name, description in described.items():
        plain = description["plain"] if description["plain"] in totals else name
        runs = [runs_by_name[name] for runs_by_name in rounds]
        same = sum(by_name[name].token_ids == by_name[plain].token_ids for by_name in rounds)
        own, other = _resample(totals[name], picks), _resample(totals[plain], picks)
        report[name] = {
            **description,
            "n": len(runs),
            "tokens": sum(len(run.token_ids) for run in runs),
            "tokens_per_second": _interval(_rate(totals[name]), own),
            "times_plain": _interval(_rate(totals[name]) / _rate(totals[plain]), own / other),
            "same_text": same,
            "first_token_ms": _quantiles([run.token_ms[0] for run in runs if run.token_ms]),
            "prefill_512_ms": _quantiles([times[name] for times in prefills]),
        }
    return report


def _rate(totals: npt.NDArray[np.float64]) -> float:
    tokens, ms = totals.sum(0)
    return float(1000 * tokens / ms)


def _resample(
    totals: npt.NDArray[np.float64], picks: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return the tokens per second of each resample of the prompts."""
    tokens, ms = totals[picks].sum(1).T
    return np.asarray(1000 * tokens / np.where(ms > 0, ms, np.nan))


def _interval(value: float, resampled: npt.NDArray[np.float64]) -> Figures:
    low, high = np.nanpercentile(resampled, (2.5, 97.5))
    return {"mean": round(value, 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (5, 25, 50, 75, 95)}


COLUMNS: Mapping[str, Callable[[Figures], str]] = {
    "tokens/s": lambda row: f"{row['tokens_per_second']['mean']:.1f}",
    "95 %": lambda row: "{low:.0f} to {high:.0f}".format(**row["tokens_per_second"]),
    "times plain": lambda row: f"{row['times_plain']['mean']:.2f}",
    "same text": lambda row: f"{row['same_text']} of {row['n']}",
    "first token, ms": lambda row: f"{row['first_token_ms']['p50']:.0f}",
    "512 tokens, ms": lambda row: f"{row['prefill_512_ms']['p50']:.0f}",
    "start, s": lambda row: f"{row['start_ms'] / 1000:.2f}",
    "memory, MB": lambda row: f"{row['memory']['peak_mb']:.0f}",
    "disk, MB": lambda row: f"{row['disk_mb']:.0f}",
}


def table(report: Figures) -> list[list[str]]:
    """Return the cells of the table, the heads first."""
    rows = [
        [name, *(cell(row) for cell in COLUMNS.values())] for name, row in report["engines"].items()
    ]
    return [["engine", *COLUMNS], *rows]


def print_table(report: Figures) -> None:
    """Print the table, one line per row."""
    cells = table(report)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{report['cpu']}, {report['threads']} threads, {report['num_prompts']} prompts")
    for row in cells:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def describe_machine(num_threads: int) -> dict[str, Any]:
    """Describe the machine and the software, to be stored with every timing."""
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
    """Measure the GB/s that the threads together read from memory, the limit of decoding."""
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
