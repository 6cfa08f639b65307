"""Sample the power, clocks and temperatures of the device during a profile, if readable."""

import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

PERIOD_S = 0.5
THERMAL = Path("/sys/class/thermal")
CPUS = Path("/sys/devices/system/cpu")
Reading = dict[str, float]  # values by name; names end in their unit


@dataclass(frozen=True)
class Range:
    """Range of a sensor's values over time, in the unit that its name ends in."""

    first: float
    last: float
    least: float
    most: float


class Sensors:
    """Context manager that samples every available sensor twice a second.

    `samples` has entries {"seconds": since the start, NAME_UNIT: value}, with the units mhz,
    celsius, watts, percent and mb.
    """

    def __init__(self) -> None:
        self.samples: list[Reading] = []
        self._sources: list[Callable[[], Reading]] = [cpu_clock, temperatures, memory]
        self._tegra: Tegra | None = None
        if (nvml := nvml_source()) is not None:
            self._sources.append(nvml)
        if shutil.which("tegrastats"):
            self._tegra = Tegra()
            self._sources.append(self._tegra.read)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._began = 0.0

    def __enter__(self) -> "Sensors":
        self._began = perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()
        if self._tegra is not None:
            self._tegra.close()

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return perf_counter() - self._began

    def _work(self) -> None:
        while True:
            sample = {"seconds": round(self.seconds(), 3)}
            for source in self._sources:
                with suppress(OSError, ValueError):
                    sample.update(source())
            self.samples.append(sample)
            if self._stopped.wait(PERIOD_S):
                return


def cpu_clock() -> Reading:
    """Read the mean clock of all cores from cpufreq, or from /proc/cpuinfo without it."""
    clocks = [
        int(path.read_text()) / 1000 for path in CPUS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    ]
    if not clocks:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        clocks = [float(value) for value in re.findall(r"cpu MHz\s*: ([\d.]+)", text)]
    return {"cpu_mhz": round(sum(clocks) / len(clocks), 1)} if clocks else {}


def temperatures() -> Reading:
    """Read the temperature of every readable thermal zone."""
    found = {}
    for zone in sorted(THERMAL.glob("thermal_zone*")):
        with suppress(OSError, ValueError):
            name = re.sub(r"\W+", "_", (zone / "type").read_text().strip().lower())
            found[f"{name}_celsius"] = int((zone / "temp").read_text()) / 1000
    return found


def memory() -> Reading:
    """Read the resident memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return {"resident_mb": round(int(line.split()[1]) / 1024, 1)}
    return {}


def nvml_source() -> Callable[[], Reading] | None:
    """Return a reader of the first NVIDIA GPU by NVML (pip install nvidia-ml-py), or None."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    except Exception:  # no library, no driver, or no GPU
        return None

    def read() -> Reading:
        found: Reading = {}
        with suppress(pynvml.NVMLError):
            found["gpu_watts"] = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
        with suppress(pynvml.NVMLError):
            found["gpu_mhz"] = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
        with suppress(pynvml.NVMLError):
            found["gpu_memory_mhz"] = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)
        with suppress(pynvml.NVMLError):
            found["gpu_celsius"] = pynvml.nvmlDeviceGetTemperature(handle, 0)
        with suppress(pynvml.NVMLError):
            found["gpu_percent"] = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
        return found

    return read


class Tegra:
    """Reads the values of a Jetson from a running tegrastats process."""

    def __init__(self) -> None:
        self._last: Mapping[str, float] = {}
        self._process = subprocess.Popen(
            ["tegrastats", "--interval", str(round(1000 * PERIOD_S))],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        threading.Thread(target=self._work, daemon=True).start()

    def read(self) -> Reading:
        """Return the values of the last line."""
        return dict(self._last)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _work(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last = parse_tegrastats(line)


def parse_tegrastats(line: str) -> Reading:
    """Parse a line: GPU clock and load, memory load, temperatures, and power of each rail."""
    return dict(_tegra_values(line))


def _tegra_values(line: str) -> Iterator[tuple[str, float]]:
    for name, key in (("GR3D_FREQ", "gpu"), ("EMC_FREQ", "memory_bus")):
        if match := re.search(rf"{name} (\d+)%(?:@\[?(\d+))?", line):
            yield f"{key}_percent", float(match[1])
            if match[2]:
                yield f"{key}_mhz", float(match[2])
    for name, value in re.findall(r"(\w+)@(-?[\d.]+)C", line):
        yield f"{name.lower()}_celsius", float(value)
    for name, value in re.findall(r"(\w+) (\d+)mW(?:/\d+mW)?", line):
        yield f"{name.lower()}_watts", int(value) / 1000


def summary(samples: list[Reading]) -> dict[str, Range]:
    """Return the range of each sensor by name."""
    names = [name for name in dict.fromkeys(n for s in samples for n in s) if name != "seconds"]
    result = {}
    for name in names:
        values = [sample[name] for sample in samples if name in sample]
        result[name] = Range(values[0], values[-1], min(values), max(values))
    return result
