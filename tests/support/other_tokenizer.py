"""The tiny engine with another tokenizer."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from make_tiny_engine import TINY_ENGINE
from tokenizers import Tokenizer

from bita.engine import sha256


def engine_with(tokenizer: Tokenizer, directory: Path, eos_ids: Sequence[int] = (1,)) -> Path:
    """Copy the tiny engine (vocabulary of 320) with another tokenizer and other EOS ids."""
    shutil.copytree(TINY_ENGINE, directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    generation = json.loads((directory / "generation.json").read_text())
    (directory / "generation.json").write_text(json.dumps({**generation, "eos_ids": [*eos_ids]}))
    manifest = json.loads((directory / "manifest.json").read_text())
    for name in ("tokenizer.json", "generation.json"):
        path = directory / name
        manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory
