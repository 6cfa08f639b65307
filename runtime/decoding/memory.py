"""Memory of an engine: the peak of the process, and the backend's memory on the GPU."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

STATUS = Path("/proc/self/status")
KILOBYTES = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss, in bytes


@dataclass
class Memory:
    """Memory in bytes."""

    host: int = 0  # peak of the process
    gpu: int = 0  # held by the backend on the GPU; 0 without one


@dataclass
class MemoryWatch:
    """Memory at two points of a session's life."""

    at_load: Memory = field(default_factory=Memory)  # after the engine was loaded and bound
    decoding: Memory = field(default_factory=Memory)  # maximum since then

    def loaded(self, gpu_bytes: int) -> None:
        """Record the memory after loading."""
        self.at_load = Memory(peak_host_bytes(), gpu_bytes)
        self.decoding = self.at_load

    def note(self, gpu_bytes: int) -> None:
        """Update the maximum while decoding."""
        self.decoding = Memory(peak_host_bytes(), max(self.decoding.gpu, gpu_bytes))


def peak_host_bytes() -> int:
    """Return the process's peak physical memory; 0 where the system does not report it."""
    try:
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    if resource is None:
        return 0
    return KILOBYTES * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
