"""Measure T(q), the time of a step of q rows on this device, at several lengths of the text."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
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
from bita.errors import EngineError, raise_faults
from bita.json_values import Fields, shown
from bita.progress import OnCount, ignore_count
from bita.runtime.backends.backend import Step, open_backend
from bita.runtime.backends.threads import default_threads
from bita.tensors import Float64Array

FILLED = (1 / 16, 0.25, 0.5, 1.0)  # shares of the capacity; most texts are short
MIN_MS, MAX_MS = 1e-4, 1e9  # of a step; times are stored with four decimals
MAX_SIZE = 1 << 24  # rows of a step, or tokens of text
MAX_LENGTHS = 1 << 10  # lengths that are timed
# no current clocks: the description of a device must not change with its load
NVIDIA_FIELDS = (
    "name",
    "driver_version",
    "clocks.max.sm",
    "clocks.max.memory",
    "clocks.applications.graphics",
    "power.limit",
)
# Steps of one size follow each other, as in decoding. After a step of another size the first eight
# are slower, and the very first takes nearly twice as long.
WARM_MS, MAX_WARM_UPS = 60.0, 12
LENGTH_WARM_MS, MAX_LENGTH_WARM_UPS = 10.0, 2  # after steps of the same size at another length
BURST_MS, MAX_IN_BURST = 25.0, 8


@dataclass(frozen=True)
class Latency:
    """T(q) of one device, for n step sizes at m lengths of the text."""

    rows: tuple[int, ...]  # [n], of the steps, increasing
    cache_lengths: tuple[int, ...]  # [m], tokens of text in the cache, increasing
    median: tuple[tuple[float, ...], ...]  # [m][n], ms of a step
    spread: tuple[tuple[float, ...], ...]  # [m][n], ms between the quartiles
    fitted: tuple[tuple[float, ...], ...]  # [m][n], ms, the medians made monotone in the rows
    residual: float  # root mean square of the medians' relative distance from `fitted`
    repeats: int  # samples of each size and length, except for sizes too slow for any tree
    device: dict[str, Any]  # result of `describe_device`

    def at(self, num_rows: int, cache_length: float) -> float:
        """Interpolate the ms of a step; beyond the measured range the last slope continues."""
        by_length = [_line(num_rows, self.rows, fitted) for fitted in self.fitted]
        return _line(cache_length, self.cache_lengths, by_length)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, source: str) -> "Latency":
        """Read what `to_json` wrote. Raises EngineError that names `source` and every fault."""
        where = f"{source}: the latency is not valid (measure it again with --remeasure)"
        if not isinstance(data, Mapping):
            raise EngineError(f"{where}: it is {shown(data)}, not an object")
        fields = Fields(data)
        rows = fields.wholes("rows", least=1, most=MAX_SIZE)
        lengths = fields.wholes("cache_lengths", most=MAX_SIZE)
        latency = cls(
            rows=rows,
            cache_lengths=lengths,
            median=_curves(fields, "median", MIN_MS),
            spread=_curves(fields, "spread", 0.0),
            fitted=_curves(fields, "fitted", MIN_MS),
            residual=fields.number("residual", least=0),
            repeats=fields.whole("repeats"),
            device=fields.table("device"),
        )
        raise_faults(EngineError, where, fields.faults or latency.faults())
        return latency

    def faults(self) -> list[str]:
        """List inconsistencies between the fields."""
        size = len(self.cache_lengths), len(self.rows)
        faults = [
            f"{name} is not increasing"
            for name, values in (("rows", self.rows), ("cache_lengths", self.cache_lengths))
            if not values or any(b <= a for a, b in pairwise(values))
        ]
        for name in ("median", "spread", "fitted"):
            curves = getattr(self, name)
            if len(curves) != size[0] or any(len(curve) != size[1] for curve in curves):
                faults.append(f"{name} does not have {size[0]} lists of {size[1]} numbers")
        if any(b < a for curve in self.fitted for a, b in pairwise(curve)):
            faults.append("fitted decreases as rows are added")
        return faults


def measure_latency(
    engine: Engine,
    max_rows: int = ROWS[-1],
    filled: Sequence[float] = FILLED,
    repeats: int = 15,
    num_threads: int = 0,
    on_progress: OnCount = ignore_count,
) -> Latency:
    """Time steps of every size up to `max_rows` rows, interleaved.

    A sample is the mean of a burst that follows steps of the same size.

    Args:
        engine: Engine to measure.
        max_rows: Largest step.
        filled: Shares of the cache's capacity that the text takes.
        repeats: Samples of each size and length; steps too slow for any tree have fewer
            (`time_steps`).
        num_threads: Threads of a step; 0 for one per physical core.
        on_progress: Called with (done, total) after each round.

    Raises:
        EngineError: if the cache has no room for a step.
    """
    backend = open_backend(engine, num_threads=num_threads)
    adapter = read_adapter(engine)
    rows, slots = sizes_of(engine, max_rows), text_slots(engine)
    lengths = lengths_of(filled, slots, slots - max(rows[-1], backend.min_slots))
    rounds = counted_rounds(repeats, on_progress)
    times = time_steps(backend, adapter, rows, lengths, rounds, _burst)
    quartiles = [[np.percentile(cell, (25, 50, 75)) for cell in cells] for cells in times]
    low, median, high = np.moveaxis(np.array(quartiles), -1, 0)
    fitted = np.array([monotone(curve) for curve in median])
    with np.errstate(divide="ignore", invalid="ignore"):  # times of 0 are refused below
        residual = float(np.sqrt(np.mean(np.square(median / fitted - 1))))
    latency = Latency(
        rows=tuple(rows),
        cache_lengths=tuple(lengths),
        median=_to_tuples(median),
        spread=_to_tuples(high - low),
        fitted=_to_tuples(fitted),
        residual=residual,
        repeats=repeats,
        device=describe_device(num_threads),
    )
    return Latency.from_json(latency.to_json(), str(engine.path))


def monotone(values: Float64Array) -> Float64Array:
    """Return the least-squares fit that never decreases (pool adjacent violators)."""
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
    """Describe the device that timings are valid for.

    The description has its processor and threads, and its clock and power mode if readable.
    """
    cores = os.cpu_count() or 1
    device: dict[str, Any] = {"machine": platform.machine(), "cores": cores}
    device["threads"] = num_threads or default_threads() or "one per physical core"
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
    """Return the name, driver and clock limits of each NVIDIA GPU, as nvidia-smi reports them."""
    query = ["nvidia-smi", f"--query-gpu={','.join(NVIDIA_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[value.strip() for value in line.split(",")] for line in done.stdout.splitlines()]
    return [dict(zip(NVIDIA_FIELDS, row, strict=False)) for row in rows]


def _burst(step: Step, is_new_size: bool) -> tuple[float]:
    """Return the mean ms of a few runs after some warm-up runs."""
    if is_new_size:
        _run(step, WARM_MS, MAX_WARM_UPS)
    else:
        _run(step, LENGTH_WARM_MS, MAX_LENGTH_WARM_UPS)
    milliseconds, count = _run(step, BURST_MS, MAX_IN_BURST)
    return (milliseconds / count,)


def _run(step: Step, min_ms: float, max_runs: int) -> tuple[float, int]:
    """Run a step for `min_ms`, at most `max_runs` times; return the ms and the number of runs."""
    began = perf_counter()
    count, milliseconds = 0, 0.0
    while count < max_runs and milliseconds < min_ms:
        step.run()
        milliseconds = 1000 * (perf_counter() - began)
        count += 1
    return milliseconds, count


def _line(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Interpolate linearly between points; beyond the ends the outermost slopes continue.

    The result is at least half of the smallest y, since noise may slope down and every step takes
    time.
    """
    if len(xs) == 1:
        return float(ys[0])
    right = min(max(int(np.searchsorted(xs, x)), 1), len(xs) - 1)
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return max(float(ys[right - 1] + share * (ys[right] - ys[right - 1])), min(ys) / 2)


def _curves(fields: Fields, key: str, least: float) -> tuple[tuple[float, ...], ...]:
    """Read a list of lists of numbers in ms; faults are added to those of `fields`."""
    curves = fields.values.get(key)
    if not isinstance(curves, (list, tuple)) or len(curves) > MAX_LENGTHS:
        fields.faults.append(f"{key} is {shown(curves)}, not a list with a list for each length")
        return ()
    named = Fields({f"{key}[{i}]": curve for i, curve in enumerate(curves)})
    named.faults = fields.faults
    return tuple(named.numbers(name, least=least, most=MAX_MS) for name in named.values)


def _to_tuples(array: Float64Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(value), 4) for value in row) for row in array)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
