"""T(q): how long a step of q rows takes on this device, at several lengths of the text."""

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bita.calibration.step_times import (
    ROWS,
    counted_rounds,
    lengths_of,
    sizes_of,
    text_slots,
    time_steps,
)
from bita.engine import Engine
from bita.engine_adapter import read_adapter
from bita.errors import EngineError
from bita.progress import OnCount, ignore_count
from bita.runtime.backends.backend import Step, open_backend
from bita.tensors import Float64Array

FILLED = (1 / 16, 0.25, 0.5, 1.0)  # shares of the capacity; most texts are short
WARM_UP_ROUNDS = 1  # rounds before the first that counts
# not the clocks of the moment: what a device is must not change with its load
NVIDIA_FIELDS = (
    "name",
    "driver_version",
    "clocks.max.sm",
    "clocks.max.memory",
    "clocks.applications.graphics",
    "power.limit",
)
# Steps of one size in a row, as a decode runs them. After a step of another size the first eight
# are slower, and the very first takes nearly twice as long.
WARM_MS, MAX_WARM_UPS = 60.0, 12
BURST_MS, MAX_IN_BURST = 40.0, 8


@dataclass(frozen=True)
class Latency:
    """T(q) of one device at several lengths of the text, n sizes of steps and m lengths."""

    rows: tuple[int, ...]  # of the steps, increasing [n]
    cache_lengths: tuple[int, ...]  # tokens of text in the cache, increasing [m]
    median: tuple[tuple[float, ...], ...]  # ms of a step [m][n]
    spread: tuple[tuple[float, ...], ...]  # ms between the quartiles [m][n]
    fitted: tuple[tuple[float, ...], ...]  # the medians made monotone in the rows, in ms [m][n]
    residual: float  # root mean square of the medians' relative distance from `fitted`
    repeats: int  # samples of each size and length
    device: dict[str, Any]  # what `describe_device` says

    def at(self, num_rows: int, cache_length: float) -> float:
        """ms of a step; linear between what was measured, and beyond it on the last slope."""
        by_length = [_line(num_rows, self.rows, fitted) for fitted in self.fitted]
        return _line(cache_length, self.cache_lengths, by_length)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, source: str) -> "Latency":
        """Raises EngineError that names `source` if it is not what `to_json` gives."""
        try:
            rows = tuple(int(count) for count in data["rows"])
            lengths = tuple(int(length) for length in data["cache_lengths"])
            median, spread, fitted = (
                tuple(tuple(float(ms) for ms in curve) for curve in data[name])
                for name in ("median", "spread", "fitted")
            )
            shapes = {(len(c), *map(len, c)) for c in (median, spread, fitted)}
            if shapes != {(len(lengths), *[len(rows)] * len(lengths))} or not rows or not lengths:
                raise ValueError("its arrays do not fit each other")
            residual, repeats = float(data["residual"]), int(data["repeats"])
            return cls(
                rows, lengths, median, spread, fitted, residual, repeats, dict(data["device"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(f"{source}: no latency of a device ({error!r})") from error


def measure_latency(
    engine: Engine,
    most_rows: int = ROWS[-1],
    filled: Sequence[float] = FILLED,
    repeats: int = 15,
    num_threads: int = 0,
    on_progress: OnCount = ignore_count,
) -> Latency:
    """Time steps of every size up to `most_rows` rows, each `repeats` times, in turns.

    filled: shares of the capacity that the text takes. A sample is the mean of a burst that
    follows steps of its own size. Raises EngineError if the cache has no room for a step.
    """
    backend = open_backend(engine, num_threads=num_threads)
    adapter = read_adapter(engine)
    rows, slots = sizes_of(engine, most_rows), text_slots(engine)
    lengths = lengths_of(filled, slots, slots - max(rows[-1], backend.least_slots))
    rounds = counted_rounds(WARM_UP_ROUNDS + repeats, on_progress)
    times = time_steps(backend, adapter, rows, lengths, rounds, _burst)[..., WARM_UP_ROUNDS:]
    low, median, high = np.percentile(times, (25, 50, 75), axis=-1)
    fitted = np.array([monotone(curve) for curve in median])
    return Latency(
        rows=tuple(rows),
        cache_lengths=tuple(lengths),
        median=_nested(median),
        spread=_nested(high - low),
        fitted=_nested(fitted),
        residual=float(np.sqrt(np.mean(np.square(median / fitted - 1)))),
        repeats=repeats,
        device=describe_device(num_threads),
    )


def monotone(values: Float64Array) -> Float64Array:
    """The nearest curve, by squares, that nowhere falls (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = float(value), 1
        while pools and pools[-1][0] > mean:
            before, number = pools.pop()
            mean = (mean * count + before * number) / (count + number)
            count += number
        pools.append((mean, count))
    return np.concatenate([np.full(count, mean) for mean, count in pools])


def describe_device(num_threads: int) -> dict[str, Any]:
    """The device that timings hold for: processor, threads, and clock and power mode where they are
    readable.
    """
    cores = os.cpu_count() or 1
    device: dict[str, Any] = {"machine": platform.machine(), "cores": cores}
    device["threads"] = num_threads or "one per physical core"
    for name, path in (
        ("processor", "/proc/cpuinfo"),
        ("board", "/proc/device-tree/model"),
        ("governor", "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        ("max_kilohertz", "/sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq"),
        ("nvpmodel", "/var/lib/nvpmodel/status"),
    ):
        text = _text_of(Path(path))
        if name == "processor":
            models = [line.split(":", 1)[1] for line in text.splitlines() if "model name" in line]
            text = models[0] if models else platform.processor()
        if text.strip("\0 \n"):
            device[name] = text.strip("\0 \n")
    if gpus := _nvidia_gpus():
        device["nvidia"] = gpus
    return device


def _nvidia_gpus() -> list[dict[str, str]]:
    """Name, driver, and what bounds the clocks of each NVIDIA GPU, as nvidia-smi has them."""
    query = ["nvidia-smi", f"--query-gpu={','.join(NVIDIA_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[value.strip() for value in line.split(",")] for line in done.stdout.splitlines()]
    return [dict(zip(NVIDIA_FIELDS, row, strict=False)) for row in rows]


def _burst(step: Step) -> tuple[float]:
    """Mean ms of a few runs that follow some that do not count."""
    _run(step, WARM_MS, MAX_WARM_UPS)
    milliseconds, count = _run(step, BURST_MS, MAX_IN_BURST)
    return (milliseconds / count,)


def _run(step: Step, min_ms: float, max_runs: int) -> tuple[float, int]:
    """Run a step until `min_ms` have passed or it ran `max_runs` times; the ms and the runs."""
    began = perf_counter()
    count, milliseconds = 0, 0.0
    while count < max_runs and milliseconds < min_ms:
        step.run()
        milliseconds = 1000 * (perf_counter() - began)
        count += 1
    return milliseconds, count


def _line(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Piecewise linear; beyond the ends on the outermost slopes."""
    if len(xs) == 1:
        return float(ys[0])
    right = min(max(int(np.searchsorted(xs, x)), 1), len(xs) - 1)
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return float(ys[right - 1] + share * (ys[right] - ys[right - 1]))


def _nested(array: Float64Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(value), 4) for value in row) for row in array)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
