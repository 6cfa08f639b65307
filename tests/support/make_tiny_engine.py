"""Write tests/data/tiny-engine, which runtime tests use without torch or an export.

python tests/support/make_tiny_engine.py [DIRECTORY]. All contents are determined by the seed.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from paths import DATA
from safetensors.numpy import save_file
from tiny_models import EOS_ID, VOCAB_SIZE, write_tokenizer

from bita.adapter import random_adapter
from bita.export.architecture import read_architecture
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.dialects.decoder import bias_shapes, expected_shapes
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.tree import Tree

TINY_ENGINE = DATA / "tiny-engine"
TINY_CAPACITY = 384  # more than one prefill piece, and soon full
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "eos_token_id": EOS_ID,
}


def write_plain_model(
    directory: Path, seed: int = 0, scale: float = 0.4, config: Mapping[str, Any] = CONFIG
) -> Path:
    """Write a random Llama as a Hugging Face directory, without torch."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    architecture = read_architecture(config, 1)
    shapes = {**expected_shapes(architecture), **bias_shapes(architecture)}
    tensors = {
        name: rng.uniform(0.5, 1.5, shape) if len(shape) == 1 else rng.normal(0, scale, shape)
        for name, shape in shapes.items()
    }
    save_file(
        {name: a.astype(np.float32) for name, a in tensors.items()}, directory / "model.safetensors"
    )
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(directory)
    return directory


def write_tiny_engine(out: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = open_checkpoint(str(write_plain_model(Path(directory) / "tiny-llama")))
        checkpoint.name = "tiny-llama"
        adapter = random_adapter(identify(checkpoint), num_masks=3, prefix_length=2, scale=0.4)
        options = BuildOptions(
            precision="fp32", mode="tree", capacity=TINY_CAPACITY, tree=Tree.triangle()
        )
        build_engine(check_build(checkpoint, adapter, out, options))


if __name__ == "__main__":
    write_tiny_engine(Path(sys.argv[1]) if len(sys.argv) > 1 else TINY_ENGINE)
