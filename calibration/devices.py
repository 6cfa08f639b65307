"""Latency of devices that are not at hand, modelled from their data sheets.

A model, not a measurement: T(q) = max(bytes read / bandwidth, operations / throughput) + a constant
per layer. It knows nothing of a kernel's steps or of int4 kernels that slow down beyond one row.
"""

from dataclasses import dataclass

from bita.calibration.latency import Latency
from bita.calibration.step_times import ROWS
from bita.engine import WEIGHTS_FILE, Engine

BYTES_A_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.625}
BANDWIDTH_SHARE = 0.8  # of the data sheet's that plain decoding was published to reach
COMPUTE_SHARE = 0.5  # of the data sheet's that thin products may reach
LAYER_MS = 0.01  # kernels of a layer, started from a captured graph


@dataclass(frozen=True)
class Device:
    """What a data sheet says of a device."""

    title: str
    gigabytes: float  # of memory traffic per second
    teraflops: float  # dense float16 products in tensor cores


DEVICES = {
    "orin-nano": Device("Jetson Orin Nano 8 GB (Super)", 102, 17),
    "agx-orin": Device("Jetson AGX Orin 64 GB", 204.8, 42.5),
    "rtx-4090": Device("GeForce RTX 4090", 1008, 165),
    "h100": Device("H100 SXM", 3350, 989),
}


def modelled_latency(name: str, engine: Engine) -> Latency:
    """T(q) of an engine's model and precision on one of DEVICES. Raises KeyError."""
    device, manifest = DEVICES[name], engine.manifest
    num_bytes = engine.files[WEIGHTS_FILE]["bytes"]
    # a step reads few rows of the float16 embeddings
    if manifest.precision in ("int8", "fp8", "int4"):
        num_bytes -= 2 * manifest.vocab_size * manifest.hidden_size
    num_weights = num_bytes / BYTES_A_WEIGHT[manifest.precision]
    token_bytes = 2 * 2 * manifest.num_layers * manifest.num_kv_heads * manifest.head_dim
    lengths = tuple(int(share * manifest.capacity) for share in (0.25, 0.5, 1.0))
    curves = tuple(
        tuple(
            max(
                (num_bytes + token_bytes * length) / (1e6 * BANDWIDTH_SHARE * device.gigabytes),
                rows * 2 * num_weights / (1e9 * COMPUTE_SHARE * device.teraflops),
            )
            + LAYER_MS * manifest.num_layers
            for rows in ROWS
        )
        for length in lengths
    )
    none = tuple((0.0,) * len(ROWS) for _ in lengths)
    described = {"processor": f"{device.title}: a model from its data sheet, not a measurement"}
    return Latency(ROWS, lengths, curves, none, curves, 0.0, 0, described)
