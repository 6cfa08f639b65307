"""Copies of an engine with changed files, and a manifest that lists them as if valid."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from bita.adapter import Adapter, random_adapter


def copy_engine(source: Path, out: Path) -> Path:
    return Path(shutil.copytree(source, out))


def read_manifest(engine: Path) -> dict[str, Any]:
    return dict(json.loads((engine / "manifest.json").read_text()))


def edit_manifest(engine: Path, **changes: Any) -> None:
    """Change values of the manifest; the value `...` removes a key."""
    values = {**read_manifest(engine), **changes}
    kept = {key: value for key, value in values.items() if value is not ...}
    (engine / "manifest.json").write_text(json.dumps(kept))


def edit_files(engine: Path, contents: Mapping[str, bytes]) -> None:
    """Replace or add files, with their sizes and hashes in the manifest."""
    files = read_manifest(engine)["files"]
    for name, content in contents.items():
        (engine / name).unlink(missing_ok=True)
        (engine / name).write_bytes(content)
        files[name] = entry_of(content)
    edit_manifest(engine, files=files)


def entry_of(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def give_pairs(engine: Path, rank: int = 4) -> dict[str, np.ndarray]:
    """Give an engine an adapter with pair scores and their tables; return the tables."""
    own = Adapter.load(engine / "adapter.safetensors")
    hidden, vocab_size = own.identity.hidden_size, own.identity.vocab_size
    rng = np.random.default_rng(0)
    shapes = {"pair_left": (hidden, rank), "pair_bias": (rank,), "pair_right": (hidden, rank)}
    pairs = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    plain = random_adapter(own.identity, own.num_masks, own.prefix_length, 0.4)
    arrays = (plain.mask_embeddings, plain.prefix_keys, plain.prefix_values)
    Adapter(*arrays, own.identity, "random", pairs=pairs).save(engine / "adapter.safetensors")
    tables = {
        side: rng.normal(0, 1, (vocab_size, rank)).astype(np.float16) for side in ("left", "right")
    }
    adapter = (engine / "adapter.safetensors").read_bytes()
    edit_files(engine, {"adapter.safetensors": adapter, "pairs.safetensors": save(tables)})
    edit_manifest(engine, pair_rank=rank)
    return tables
