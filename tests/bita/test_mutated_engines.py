"""Engines with randomly changed files raise only BitaError, quickly and in little memory.

python tests/bita/test_mutated_engines.py COUNT [SEED] tries more changes and prints the outcomes.
"""

import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from engine_edits import copy_engine, edit_files, give_pairs, read_manifest
from make_tiny_engine import TINY_ENGINE
from mutations import mutated_bytes, mutated_json
from speed import slow_but

from bita.errors import BitaError
from bita.runtime.session import Session

NAMES = ("manifest.json", "tree.json", "adapter.safetensors", "pairs.safetensors", "model.onnx")
TREE_TABLE = (
    '{"trees": [{"nodes": [{"path": [], "masks": 3}, {"path": [1], "masks": 1}]}, '
    '{"nodes": [], "min_level": 2}], "matches": [0, 3], "by_state": [[0, 1], [1, 0]]}'
)
MAX_SECONDS, MAX_BYTES = 2.0, 1 << 30


def mutate(name: str, data: bytes, rng: random.Random) -> bytes:
    """Return changed content: random bytes, or values of its JSON, header or metadata."""
    if rng.random() < 0.4 or name == "model.onnx":
        return mutated_bytes(data, rng)
    if name.endswith(".json"):
        return _dump(mutated_json(json.loads(data), rng))
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    stated = header.get("__metadata__", {}).get("bita-adapter")
    if stated and rng.random() < 0.6:
        inner = json.loads(stated)
        if rng.random() < 0.5:
            identity = mutated_json(json.loads(inner["identity"]), rng)
            inner["identity"] = _dump(identity).decode()
        else:
            inner = mutated_json(inner, rng)
        header["__metadata__"]["bita-adapter"] = _dump(inner).decode()
    else:
        header = mutated_json(header, rng)
    text = _dump(header)
    return len(text).to_bytes(8, "little") + text + rest


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


class Mutator:
    """An engine with pair scores, whose files are changed one at a time."""

    def __init__(self, directory: Path) -> None:
        self.engine = copy_engine(TINY_ENGINE, directory / "engine")
        give_pairs(self.engine)
        self.contents = {name: (self.engine / name).read_bytes() for name in NAMES}
        self.manifest = read_manifest(self.engine)

    def attempt(self, name: str, rng: random.Random) -> str:
        """Open the engine with one changed file, generate a few tokens, and return the outcome."""
        data = self.contents[name]
        if name == "tree.json" and rng.random() < 0.5:
            data = TREE_TABLE.encode()
        content = mutate(name, data, rng)
        if name == "manifest.json":
            (self.engine / name).write_bytes(content)
        else:
            edit_files(self.engine, {name: content})
        began = time.perf_counter()
        try:
            Session.open(self.engine, num_threads=1).generate("ab", 4, ignore_eos=True)
            outcome = "opened"
        except BitaError as error:
            outcome = type(error).__name__ if len(str(error)) < 20_000 else "a long message"
        finally:
            seconds = time.perf_counter() - began
            (self.engine / name).write_bytes(self.contents[name])
            (self.engine / "manifest.json").write_text(json.dumps(self.manifest))
        assert seconds < MAX_SECONDS, (outcome, seconds)
        return outcome


@pytest.mark.parametrize("name", slow_but(NAMES, "model.onnx", "adapter.safetensors"))
def test_changed_files_raise_only_bita_errors(name: str, tmp_path: Path) -> None:
    mutator, outcomes = Mutator(tmp_path), Counter[str]()
    for seed in range(150):
        outcomes[mutator.attempt(name, random.Random(seed))] += 1
    assert sum(outcomes.values()) - outcomes["opened"] > 50, outcomes
    assert not outcomes["a long message"]


def main(count: int, first: int) -> None:
    for name in NAMES:
        outcomes, others, slowest = Counter[str](), Counter[str](), 0.0
        directory = Path(tempfile.mkdtemp())
        mutator = Mutator(directory)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in range(first, first + count):
            began = time.perf_counter()
            try:
                outcomes[mutator.attempt(name, random.Random(seed))] += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                others[f"{type(error).__name__} {error!s:.80}"] += 1
                print(name, seed, type(error).__name__, str(error)[:200], flush=True)
            slowest = max(slowest, time.perf_counter() - began)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(name, count, dict(outcomes), "others:", sum(others.values()), end=" ")
        print(f"slowest {slowest:.2f} s, grew by {grown:.0f} MB", flush=True)
        shutil.rmtree(directory)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
