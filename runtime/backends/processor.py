"""Features of the processor that an engine may rely on."""

import platform
from pathlib import Path

X86 = ("x86_64", "amd64", "i686")
PROCESSOR, EXACT_INT8 = "processor", "exact int8"  # key and value in a manifest's `requires`
VNNI = ("avx512_vnni", "avx_vnni")


def multiplies_int8_exactly(machine: str | None = None, cpuinfo: Path | None = None) -> bool:
    """Return whether ONNX Runtime's products of uint8 and int8 values are exact.

    On x86 without VNNI they are not, because pairs of products are added in 16 bits. On x86 systems
    without /proc/cpuinfo the result is False.
    """
    if (machine or platform.machine()).lower() not in X86:
        return True
    try:
        text = (cpuinfo or Path("/proc/cpuinfo")).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return any(flag in flags.split() for flag in VNNI)
