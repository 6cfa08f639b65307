"""Fuzz targets: parsers of an engine directory and of adapters."""

import hashlib
import json
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from make_tiny_engine import TINY_ENGINE
from mutation import Mutator
from running import Execute, Target
from safetensors.numpy import save

from bita.adapter import Adapter
from bita.calibration.acceptance import Acceptance
from bita.calibration.latency import Latency
from bita.calibration.report import read_quality
from bita.engine import (
    ADAPTER_FILE,
    CALIBRATION_FILE,
    MANIFEST_FILE,
    PAIRS_FILE,
    Manifest,
    open_engine,
)
from bita.errors import BitaError
from bita.generation import GenerationDefaults
from bita.identity import ModelIdentity
from bita.plan import PlanInfo
from bita.runtime.backends.pair_scores import EnginePairs
from bita.tree_table import trees_from_json

PLAN = {
    "library": "tensorrt_rtx",
    "version": "1.7.0.20",
    "targets": "sm87,sm89",
    "decode_rows": "1,16",
    "prefill_rows": "64",
    "prefill_outputs": "4",
}
WORDS = (
    *Manifest.__dataclass_fields__,
    *PLAN,
    *("files", "bytes", "sha256", "nodes", "path", "masks", "min_level", "trees", "matches"),
    *("by_state", "eos_ids", "special_tokens", "sampling", "F16", "I64", "BF16", "data_offsets"),
    *("tensorrt", "tensorrt-rtx", "ort-cuda", "exact", "os", "subprocess", "../model.onnx"),
)
QUALITY = {
    "perplexity": 3.1,
    "reference_perplexity": 3.0,
    "kl": 0.01,
    "same_greedy": 0.97,
    "worst_layer": "model.layers.0.mlp.down_proj.weight",
    "worst_layer_error": 0.1,
    "num_texts": 4,
    "num_tokens": 100,
    "quantizer": "gptq",
    "prompts": "a.jsonl",
}
LATENCY = Latency(
    rows=(1, 2, 4),
    cache_lengths=(64, 256),
    median=((1.0, 1.5, 2.0), (2.0, 2.5, 3.0)),
    spread=((0.1, 0.1, 0.1), (0.1, 0.1, 0.1)),
    fitted=((1.0, 1.5, 2.0), (2.0, 2.5, 3.0)),
    residual=0.01,
    repeats=5,
    device={"processor": "x"},
).to_json()
ACCEPTANCE = {
    "prompts_sha256": "0" * 64,
    "prompt_lengths": [5, 6],
    "num_ranks": 16,
    "masks": [],
    "texts": [[[[1, 2, 0], 0, 0]], [[[0, 1, 3], 2, 1]]],
}
TREE = json.loads((TINY_ENGINE / "tree.json").read_text())
TABLE = {"trees": [TREE, {**TREE, "min_level": 2}], "matches": [0, 3], "by_state": [[0, 1], [1, 0]]}


def engine_targets() -> list[Target]:
    return [
        Target("manifest", _manifest, (BitaError,)),
        Target("plan", _values(PLAN, _read_plan), (BitaError,)),
        Target("tree", _values(TREE, trees_from_json), (BitaError,)),
        Target("tree-table", _values(TABLE, trees_from_json), (BitaError,)),
        Target("generation", _generation, (BitaError,)),
        Target("calibration", _calibration, (BitaError,)),
        Target("adapter", _adapter, (BitaError,)),
        Target("identity", _values(_identity(), ModelIdentity.from_json), (BitaError,)),
        Target("pairs", _pairs, (BitaError,)),
    ]


def _values(seed: Any, read: Callable[[str], Any]) -> Callable[[Path], Execute]:
    """Return the preparation of a target that parses a JSON text."""

    def prepare(_: Path) -> Execute:
        def execute(rng: random.Random) -> None:
            read(Mutator(rng, WORDS).json_bytes(seed).decode("utf-8", "surrogateescape"))

        return execute

    return prepare


def _read_plan(text: str) -> None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return  # the reader of the manifest refuses these earlier
    if isinstance(data, dict) and all(isinstance(value, str) for value in data.values()):
        PlanInfo.from_manifest(data)


def _copy_engine(directory: Path) -> tuple[Path, dict[str, Any]]:
    engine = directory / "engine"
    shutil.copytree(TINY_ENGINE, engine)
    return engine, json.loads((engine / MANIFEST_FILE).read_text())


def _write_file(engine: Path, manifest: dict[str, Any], name: str, data: bytes) -> dict[str, Any]:
    """Write a file of the engine, record its size and hash, and return the new manifest."""
    (engine / name).write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    written = {**manifest, "files": {**manifest["files"], name: entry}}
    (engine / MANIFEST_FILE).write_text(json.dumps(written))
    return written


def _manifest(directory: Path) -> Execute:
    engine, manifest = _copy_engine(directory)
    seeds = [manifest, {**manifest, "backend": "tensorrt-rtx", "format_version": 3, "plan": PLAN}]

    def execute(rng: random.Random) -> None:
        data = Mutator(rng, WORDS).json_bytes(rng.choice(seeds))
        (engine / MANIFEST_FILE).write_bytes(data)
        opened = open_engine(engine)
        if opened.manifest.plan:
            PlanInfo.from_manifest(opened.manifest.plan)

    return execute


def _generation(directory: Path) -> Execute:
    seed = {
        "eos_ids": [1],
        "special_tokens": {"eos_token": "<|end|>"},
        "sampling": {"temperature": 0.7, "top_k": 20, "top_p": 0.9},
    }
    path = directory / "generation.json"

    def execute(rng: random.Random) -> None:
        path.write_bytes(Mutator(rng, WORDS).json_bytes(seed))
        GenerationDefaults.load(path)

    return execute


def _calibration(directory: Path) -> Execute:
    engine, manifest = _copy_engine(directory)
    seed = {"quality": QUALITY, "latency": LATENCY, "acceptance": ACCEPTANCE}

    def execute(rng: random.Random) -> None:
        mutated = Mutator(rng, (*WORDS, *QUALITY, *LATENCY, *ACCEPTANCE)).mutate(seed)
        data = json.dumps(mutated).encode()
        _write_file(engine, manifest, CALIBRATION_FILE, data)
        read_quality(open_engine(engine))
        if isinstance(mutated, dict):
            Latency.from_json(mutated.get("latency"), "device.json")
            Acceptance.from_json(mutated.get("acceptance"))

    return execute


def _adapter(directory: Path) -> Execute:
    path = directory / "adapter.safetensors"
    seed = (TINY_ENGINE / "adapter.safetensors").read_bytes()

    def execute(rng: random.Random) -> None:
        path.write_bytes(safetensors_bytes(rng, seed))
        Adapter.load(path)

    return execute


def safetensors_bytes(rng: random.Random, seed: bytes) -> bytes:
    """Return a safetensors file with its header mutated, or with bytes changed anywhere."""
    mutator = Mutator(rng, WORDS)
    if rng.random() < 0.3:
        return mutator.mutate_bytes(seed)
    length = struct.unpack("<Q", seed[:8])[0]
    header = json.loads(seed[8 : 8 + length])
    if "__metadata__" in header and rng.random() < 0.5:
        key = rng.choice(list(header["__metadata__"]))
        text = header["__metadata__"][key]
        try:
            header["__metadata__"][key] = json.dumps(mutator.mutate(json.loads(text)))
        except ValueError:
            header["__metadata__"][key] = mutator.text_value()
        changed = json.dumps(header).encode("utf-8", "surrogatepass")
    else:
        changed = mutator.json_bytes(header)
    return struct.pack("<Q", len(changed)) + changed + seed[8 + length :]


def _identity() -> dict[str, Any]:
    return asdict(Adapter.load(TINY_ENGINE / "adapter.safetensors").identity)


def _pairs(directory: Path) -> Execute:
    engine, manifest = _copy_engine(directory)
    tables = {"left": np.ones((320, 4), np.float16), "right": np.ones((320, 4), np.float16)}
    plain, seed = Adapter.load(TINY_ENGINE / "adapter.safetensors"), save(tables)
    left = np.ones((plain.identity.hidden_size, 4), np.float32)
    pairs = {"pair_left": left, "pair_bias": np.ones(4, np.float32), "pair_right": left}
    adapter = replace(plain, pairs=pairs)
    adapter.save(directory / ADAPTER_FILE)
    data = (directory / ADAPTER_FILE).read_bytes()
    manifest = _write_file(engine, {**manifest, "pair_rank": 4}, ADAPTER_FILE, data)
    parents, candidates = np.array([0, 319]), np.array([5, 300])

    def execute(rng: random.Random) -> None:
        _write_file(engine, manifest, PAIRS_FILE, safetensors_bytes(rng, seed))
        read = EnginePairs(open_engine(engine)).tables(adapter)
        if read is not None:
            read.order(parents, candidates, np.zeros(2, np.float32))

    return execute
