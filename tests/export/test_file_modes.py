"""The umask determines the modes of all written files, whichever library writes them."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from make_tiny_engine import write_plain_model
from speed import thorough_but

from bita.adapter import Adapter, random_adapter
from bita.calibration.array_files import ArrayFiles
from bita.cli.main import main
from bita.export.sources import open_checkpoint
from bita.files import write_whole
from bita.identity import identify
from bita.pairs import PAIR_TENSORS

FEW = ["--limit", "3", "--max-new-tokens", "6", "--repeats", "1", "--max-rows", "3"]


@pytest.fixture(params=thorough_but([0o022, 0o027, 0o002], 0o027))
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def adapter_with_pairs(model: Path) -> Adapter:
    identity = identify(open_checkpoint(str(model)))
    plain = random_adapter(identity, 3, 2)
    rng = np.random.default_rng(0)
    sizes = ((identity.hidden_size, 4), (4,), (identity.hidden_size, 4))
    pairs = {n: rng.normal(size=size) for n, size in zip(PAIR_TENSORS, sizes, strict=True)}
    return Adapter(
        *(plain.mask_embeddings, plain.prefix_keys, plain.prefix_values, identity),
        pairs={name: array.astype(np.float32) for name, array in pairs.items()},
    )


def modes(path: Path) -> dict[str, str]:
    found = [path, *path.rglob("*")] if path.is_dir() else [path]
    return {each.name: oct(stat.S_IMODE(each.stat().st_mode)) for each in found}


def expected_modes(path: Path, umask: int) -> dict[str, str]:
    found = [path, *path.rglob("*")] if path.is_dir() else [path]
    return {each.name: oct((0o777 if each.is_dir() else 0o666) & ~umask) for each in found}


def test_engines_and_adapters_follow_the_umask(umask: int, tmp_path: Path) -> None:
    model, adapter, out = (tmp_path / name for name in ("model", "a.safetensors", "engine"))
    write_plain_model(model)
    adapter_with_pairs(model).save(adapter)
    assert modes(adapter) == expected_modes(adapter, umask)
    build = ["engine", str(model), "--adapter", str(adapter), "--out", str(out), "--uncalibrated"]
    assert main([*build, "--capacity", "384", "--precision", "fp32"]) == 0
    assert "pairs.safetensors" in modes(out)
    assert modes(out) == expected_modes(out, umask)
    assert main(["calibrate", "tree", str(out), *FEW, "--threads", "1"]) == 0
    assert "calibration.json" in modes(out)
    assert modes(out) == expected_modes(out, umask)


def test_a_calibrated_build_follows_the_umask(umask: int, tmp_path: Path) -> None:
    model, out = write_plain_model(tmp_path / "model"), tmp_path / "engine"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "Fox {number}"}}\n' for number in range(4)))
    build = ["engine", str(model), "--out", str(out), "--tree", "chain"]
    assert main([*build, "--calibration-prompts", str(prompts)]) == 0
    assert modes(out) == expected_modes(out, umask)


def test_files_written_whole_follow_the_umask(umask: int, tmp_path: Path) -> None:
    write_whole(tmp_path / "report.json", "{}")
    ArrayFiles(tmp_path / "arrays").save("a", np.zeros(3, np.float32))
    for path in tmp_path.iterdir():
        assert modes(path) == expected_modes(path, umask)
