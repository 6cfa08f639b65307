"""T(q): how long a step of q rows takes on this device, at several lengths of the text."""

import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.adapter import Adapter
from bita.engine import ADAPTER_FILE, Engine
from bita.errors import EngineError
from bita.plan import PlanInfo
from bita.runtime.backends.backend import Step, open_backend
from bita.runtime.backends.layout import tree_layout
from bita.tree import Tree

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 40, 48, 64, 96, 128)
FILLED = (1 / 16, 0.25, 0.5, 1.0)  # shares of the capacity; most texts are short
WARM_UP = 1  # rounds before the first that counts
# not the clocks of the moment: what a device is must not change with its load
NVIDIA_FIELDS = (
    *("name", "driver_version", "clocks.max.sm", "clocks.max.memory"),
    *("clocks.applications.graphics", "power.limit"),
)
# Steps of one size in a row, as a decode runs them. Behind a step of another size the first eight
# are slower, the very first nearly twice as slow.
WARM_MS, MOST_TO_WARM = 60.0, 12
BURST_MS, MOST_IN_BURST = 40.0, 8


@dataclass(frozen=True)
class Latency:
    """Times in ms; rows [n], cache_lengths [m].

    median, spread: [m][n]; spread is the distance between the quartiles. fitted: [m][n], the
    medians made monotone in the rows. residual: root mean square of the medians' relative
    distance from that.
    """

    rows: tuple[int, ...]
    cache_lengths: tuple[int, ...]
    median: tuple[tuple[float, ...], ...]
    spread: tuple[tuple[float, ...], ...]
    fitted: tuple[tuple[float, ...], ...]
    residual: float
    repeats: int
    device: dict[str, Any]

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
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Latency:
    """Time steps of every size in turns, so that a drift of the machine hits all alike.

    A step is timed as a decode round sees it: inputs bound before, all rows giving tokens, steps
    of its own size before it. most_rows: of the largest. repeats: turns of each size. Raises
    EngineError if the cache has no room for a step.
    """
    backend = open_backend(engine, num_threads=num_threads)
    adapter = Adapter.load(engine.file(ADAPTER_FILE))
    backend.cache.start(adapter)
    rows = sizes_of(engine, most_rows)
    lengths = _lengths(filled, _room(engine), max(rows[-1], backend.least_slots))
    steps = [
        backend.bind(tree_layout(tree_of(count, adapter.num_masks), 1), adapter) for count in rows
    ]
    times = np.zeros((repeats + WARM_UP, len(lengths), len(steps)))
    rng = np.random.default_rng(0)
    for repeat in range(repeats + WARM_UP):
        for place in rng.permutation(len(lengths) * len(steps)):
            length, size = divmod(int(place), len(steps))
            backend.cache.length = lengths[length]
            times[repeat, length, size] = _timed(steps[size])
        on_progress(repeat + 1, repeats + WARM_UP)
    low, median, high = np.percentile(times[WARM_UP:], (25, 50, 75), axis=0)
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


def sizes_of(engine: Engine, most_rows: int) -> list[int]:
    """The steps that are timed: those with up to so many rows that the cache has room for, and that
    a compiled engine has.
    """
    plan = engine.manifest.plan
    sizes = PlanInfo.from_manifest(plan).decode_rows if plan else ROWS
    fit = [count for count in sizes if count <= most_rows and count < _room(engine)]
    if not fit:
        raise EngineError(f"a cache of {engine.manifest.capacity} slots has no room for a step")
    return fit


def _room(engine: Engine) -> int:
    return engine.manifest.capacity - engine.manifest.prefix_length


def tree_of(num_rows: int, num_masks: int) -> Tree:
    """A chain of nodes with their masks, of so many rows; AR's one and two rows are text alone."""
    if num_rows <= 2:
        return Tree.chain(num_rows - 1, 0) if num_rows == 2 else Tree.root_only()
    num_nodes = -(-num_rows // (num_masks + 1))
    masks = [num_masks] * num_nodes
    masks[-1] -= num_nodes * (num_masks + 1) - num_rows
    return Tree.chain(num_nodes - 1, masks) if num_nodes > 1 else Tree.root_only(masks[0])


def monotone(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
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
    """What the timings hold for: processor, threads, and clock and power mode where readable."""
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


def _lengths(filled: Sequence[float], capacity: int, most_slots: int) -> list[int]:
    """Tokens of text for each share of the capacity, with room for the largest step."""
    room = capacity - most_slots
    return sorted({min(max(int(share * capacity), 1), room) for share in filled})


def _timed(step: Step) -> float:
    """Mean of a few runs behind some that do not count."""
    _run(step, WARM_MS, MOST_TO_WARM)
    milliseconds, count = _run(step, BURST_MS, MOST_IN_BURST)
    return milliseconds / count


def _run(step: Step, least_ms: float, most: int) -> tuple[float, int]:
    """Run it until that time is over; the time in ms, and how often."""
    began = perf_counter()
    count, milliseconds = 0, 0.0
    while count < most and milliseconds < least_ms:
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


def _nested(array: npt.NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(value), 4) for value in row) for row in array)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
