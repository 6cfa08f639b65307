"""Weights to quantize, files with quantized weights, and errors of rounded weights."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from tiny_gguf import base_metadata, converted, llama_tensors, write_gguf

from bita.export.gguf.checkpoint import GgufCheckpoint

RNG = np.random.default_rng(0)
QKV = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
MLP = [f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
SKEWED = RNG.exponential(size=(40, 100)).astype(np.float32) - np.float32(0.5)


def write_quantized(
    path: Path,
    kinds: Mapping[str, Kind],
    architecture: str = "llama",
    tensors: dict[str, np.ndarray] | None = None,
) -> GgufCheckpoint:
    """Write a tiny model; matrices whose file names contain a key of `kinds` are quantized."""
    stored = converted(architecture, tensors or llama_tensors())
    of_name = {
        name: kind
        for name in stored
        for part, kind in kinds.items()
        if part in name and "norm" not in name
    }
    floats = {name: value for name, value in stored.items() if name not in of_name}
    quantized = {
        name: (gguf.quants.quantize(stored[name], kind), kind) for name, kind in of_name.items()
    }
    write_gguf(path, architecture, base_metadata(architecture), floats, quantized)
    return GgufCheckpoint(path)


def k_quant_bytes(kind: Kind, rows: int, columns: int) -> np.ndarray:
    """Return random bytes of a K-quant whose float16 factors are between 0.01 and 0.02."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    places = {Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q6_K: (208,)}.get(kind, (0, 2))
    data = RNG.integers(0, 256, (rows, columns // block, block_bytes), dtype=np.uint8)
    for place in places:
        factors = RNG.uniform(0.01, 0.02, (*data.shape[:2], 1)).astype(np.float16)
        data[..., place : place + 2] = factors.view(np.uint8)
    return data.reshape(rows, -1)


def correlated_moments(width: int) -> np.ndarray:
    """Return second moments [width, width] of rows mixed from width / 4 directions plus noise."""
    mixing = RNG.normal(size=(width // 4 + 1, width))
    rows = RNG.normal(size=(2000, len(mixing))) @ mixing + 0.3 * RNG.normal(size=(2000, width))
    moments: np.ndarray = (rows.T @ rows).astype(np.float32)
    return moments


def relative_error(near: np.ndarray, weights: np.ndarray) -> float:
    """Return the norm of the error divided by the norm of the weights."""
    return float(np.linalg.norm(near - weights) / np.linalg.norm(weights))


def weighted_error(near: np.ndarray, weights: np.ndarray, moments: np.ndarray) -> float:
    """Return the squared error of products with the rows that have these moments."""
    error = (near - weights).astype(np.float64)
    return float(np.einsum("nk,kl,nl->", error, moments, error))
