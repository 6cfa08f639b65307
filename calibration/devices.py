"""Model the latency of devices that are not available.

A GPU is modelled from its data sheet: T(q) = max(bytes read / bandwidth, operations / throughput) +
a constant per layer. This ignores the jumps in a kernel's curve, and int4 kernels that slow down
beyond one row. A CPU is modelled from the cycles of the native kernels (`step_model`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bita.calibration.arm_cycles import CORTEX_A76, CORTEX_A78
from bita.calibration.latency import FILLED, Latency, monotone
from bita.calibration.step_model import Processor, step_ms, step_shape
from bita.calibration.step_times import ROWS
from bita.engine import WEIGHTS_FILE, Engine

BYTES_A_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.625}
BANDWIDTH_SHARE = 0.8  # of the data sheet's bandwidth; published results of plain decoding reach it
COMPUTE_SHARE = 0.5  # of the data sheet's throughput that products of few rows may reach
LAYER_MS = 0.01  # launching a layer's kernels from a captured CUDA graph


@dataclass(frozen=True)
class Device:
    """Data sheet of a GPU."""

    title: str
    gigabytes: float  # of memory traffic per second
    teraflops: float  # dense float16 products in tensor cores


DEVICES = {
    "orin-nano": Device("Jetson Orin Nano 8 GB (Super)", 102, 17),
    "agx-orin": Device("Jetson AGX Orin 64 GB", 204.8, 42.5),
    "rtx-4090": Device("GeForce RTX 4090", 1008, 165),
    "h100": Device("H100 SXM", 3350, 989),
}


@dataclass(frozen=True)
class CpuDevice:
    """Processor of a board, and the source of its memory bandwidth."""

    title: str
    processor: Processor
    memory: str  # source of the bandwidth


CHECKED = "on an AMD EPYC (Zen 3) with one thread, the same model was off by -10 to +13 %"
# A CPU reads less than the memory can deliver. Llama 2 7B in 4 bits reads 3.7 GB for each token:
# https://github.com/microsoft/T-MAC/blob/main/docs/profiling_data.md has 8.1 tokens/s on AGX Orin
# with twelve threads (30 GB/s) and 3.35 on a Raspberry Pi 5 with two (12.4 GB/s); llama.cpp reads
# 10.5 GB/s there with four threads (https://github.com/ggml-org/llama.cpp/issues/26484).
CPU_DEVICES = {
    "orin-nano-cpu": CpuDevice(
        "Jetson Orin Nano 8 GB (Super), 6 Cortex-A78AE",
        Processor(CORTEX_A78, 6, 1.7, 20),
        "assumed for two of AGX Orin's three clusters",
    ),
    "agx-orin-cpu": CpuDevice(
        "Jetson AGX Orin 64 GB, 12 Cortex-A78AE",
        Processor(CORTEX_A78, 12, 2.2, 30),
        "what T-MAC's decoding reads there",
    ),
    "pi-5": CpuDevice(
        "Raspberry Pi 5, 4 Cortex-A76",
        Processor(CORTEX_A76, 4, 2.4, 12),
        "what T-MAC's decoding reads there",
    ),
}
MODELLED = (*DEVICES, *CPU_DEVICES)


def modelled_latency(name: str, engine: Engine) -> Latency:
    """Model T(q) of an engine's model and precision on one of MODELLED.

    Raises:
        KeyError: if the name is unknown.
        EngineError: if the device is a CPU and the engine does not have native operators.
    """
    if name in CPU_DEVICES:
        return _cpu_latency(CPU_DEVICES[name], engine)
    return _gpu_latency(DEVICES[name], engine)


def _cpu_latency(device: CpuDevice, engine: Engine) -> Latency:
    shape, processor = step_shape(engine), device.processor
    described = (
        f"{device.title}: a model, not a measurement, of the native operators on "
        f"{processor.cores} cores at {processor.gigahertz:g} GHz that read {processor.gigabytes:g} "
        f"GB/s ({device.memory}), with cycles by llvm-mca; {CHECKED}"
    )
    return _latency(
        engine, FILLED, described, lambda rows, length: step_ms(shape, processor, rows, length)
    )


def _gpu_latency(device: Device, engine: Engine) -> Latency:
    manifest = engine.manifest
    num_bytes = engine.files[WEIGHTS_FILE]["bytes"]
    # a step reads only a few rows of the float16 embeddings
    if manifest.precision in ("int8", "fp8", "int4"):
        num_bytes -= 2 * manifest.vocab_size * manifest.hidden_size
    num_weights = num_bytes / BYTES_A_WEIGHT[manifest.precision]
    token_bytes = 2 * 2 * manifest.num_layers * manifest.num_kv_heads * manifest.head_dim

    def milliseconds(rows: int, length: int) -> float:
        return LAYER_MS * manifest.num_layers + max(
            (num_bytes + token_bytes * length) / (1e6 * BANDWIDTH_SHARE * device.gigabytes),
            rows * 2 * num_weights / (1e9 * COMPUTE_SHARE * device.teraflops),
        )

    described = f"{device.title}: a model from its data sheet, not a measurement"
    return _latency(engine, FILLED[1:], described, milliseconds)


def _latency(
    engine: Engine,
    filled: tuple[float, ...],
    described: str,
    milliseconds: Callable[[int, int], float],
) -> Latency:
    """Return a curve for each share of the capacity that the text takes."""
    lengths = tuple(int(share * engine.manifest.capacity) for share in filled)
    curves = tuple(
        tuple(float(ms) for ms in monotone(np.array([milliseconds(rows, length) for rows in ROWS])))
        for length in lengths
    )
    none = tuple((0.0,) * len(ROWS) for _ in lengths)
    return Latency(ROWS, lengths, curves, none, curves, 0.0, 0, {"processor": described})
