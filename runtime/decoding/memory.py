"""How much memory an engine takes: the process's peak, and what the backend holds on the GPU."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

STATUS = Path("/proc/self/status")
KILOBYTES = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss


@dataclass
class Memory:
    """Bytes. host: peak of the process; gpu: what the backend holds there, 0 without a GPU."""

    host: int = 0
    gpu: int = 0


@dataclass
class MemoryWatch:
    """at_load: when the engine was loaded and its steps were bound. decoding: the most since."""

    at_load: Memory = field(default_factory=Memory)
    decoding: Memory = field(default_factory=Memory)

    def loaded(self, gpu_bytes: int) -> None:
        self.at_load = Memory(peak_host_bytes(), gpu_bytes)
        self.decoding = self.at_load

    def note(self, gpu_bytes: int) -> None:
        """Take a look while it decodes."""
        self.decoding = Memory(peak_host_bytes(), max(self.decoding.gpu, gpu_bytes))


def peak_host_bytes() -> int:
    """The most physical memory the process had so far; 0 where the system does not tell."""
    try:
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    if resource is None:
        return 0
    return KILOBYTES * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
