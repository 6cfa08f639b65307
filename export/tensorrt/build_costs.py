"""The memory and disk space that a build needs, and the check that they are available."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from bita.engine_place import Place
from bita.errors import EngineError
from bita.plan import RTX

# Host memory for building a plan: a constant in bytes, and a factor on the bytes of weights.
# Measured with TensorRT-RTX 1.7.1, SmolLM2-135M in float16 and 4 bits: a constant of 1.0 GB and a
# factor of 2.9 (benchmarks/plans.py).
# TensorRT builds were reported to take 3 to 4 times the model (TensorRT-Edge-LLM issue 30).
PLAN_MEMORY = {RTX: (1.1e9, 3.3), "tensorrt": (1.2e9, 4.0)}
PROFILE_MEMORY = 40e6  # additional bytes for each decode profile
# Kernels for a step of one row need the weights in another order, and so a second copy.
ONE_ROW_MEMORY, ONE_ROW_DISK = 2.5, 0.9
PLAN_DISK, PROFILE_DISK = (30e6, 1.25), 20e6


@dataclass(frozen=True)
class Costs:
    """Upper bounds in bytes, estimated from measured builds."""

    memory: float
    disk: float

    def __str__(self) -> str:
        return f"{self.memory / 1e9:.1f} GB of memory and {self.disk / 1e9:.1f} GB on disk at most"


def plan_costs(weight_bytes: int, library: str, decode_rows: tuple[int, ...]) -> Costs:
    """Return the costs of building a plan.

    Args:
        weight_bytes: Bytes of the graph's weights.
        library: "tensorrt" or RTX.
        decode_rows: Q of each size of a decode step.
    """
    base, factor = PLAN_MEMORY[library]
    disk_base, disk_factor = PLAN_DISK
    if 1 in decode_rows and len(decode_rows) > 1:
        factor, disk_factor = factor + ONE_ROW_MEMORY, disk_factor + ONE_ROW_DISK
    profiles = len(decode_rows)
    return Costs(
        base + factor * weight_bytes + PROFILE_MEMORY * profiles,
        disk_base + disk_factor * weight_bytes + PROFILE_DISK * profiles,
    )


def check_memory(num_bytes: float, purpose: str, fix: str) -> None:
    """Raise EngineError if less than `num_bytes` of memory is free.

    Args:
        num_bytes: The memory needed.
        purpose: What needs the memory, for the message.
        fix: The remedy, for the message.
    """
    free = free_memory()
    if free is not None and free < num_bytes:
        raise EngineError(
            f"{purpose} takes {num_bytes / 1e9:.1f} GB of memory, but only {free / 1e9:.1f} GB are "
            f"free; {fix}"
        )


def check_disk(out: Path, num_bytes: float) -> None:
    """Raise EngineError if less than `num_bytes` is free on the disk of `out`."""
    existing = next(parent for parent in Place.of(out).prefix.parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise EngineError(
            f"{existing} has {free / 1e9:.1f} GB free, but the engine needs "
            f"{num_bytes / 1e9:.1f} GB; free some, or build elsewhere"
        )


def free_memory() -> int | None:
    """Return the available memory in bytes, or None if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(kilobytes[0]) if kilobytes else None
