"""Writers of model directories with arbitrary tensors, for tests of reading them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

CONFIG = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}


def write_weights(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a file with the safetensors library."""
    path.write_bytes(save(dict(tensors)))


def write_model(
    directory: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] = CONFIG
) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    write_weights(directory / "model.safetensors", tensors)
    return directory


def write_shards(directory: Path, shards: Mapping[str, Mapping[str, np.ndarray]]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    for shard, tensors in shards.items():
        write_weights(directory / shard, tensors)
    return directory


def random(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)
