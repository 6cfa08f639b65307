"""Every processor gives bit-identical logits and the same token ids: hashes made on x86.

`PYTHONPATH=tests/support python tests/runtime/test_logit_hashes.py` rewrites them after an intended
change of the arithmetic. It needs the default model.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from logit_hashes import hashes_by_isa, logit_hashes, transcript, weights_hash
from native_engines import FEATURES, native_engine, require_library
from paths import DATA

from bita.engine import Engine, open_engine
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint

GOLDEN = DATA / "logit_hashes.json"
DEFAULT = "smollm2-135m-instruct"
GOLDEN_HASHES = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


def default_engine(folder: Path) -> Engine:
    """Build the default model in int4: the blocks are the file's, whatever machine builds it."""
    options = BuildOptions("int4", capacity=256, dialect="native")
    build_engine(check_build(open_checkpoint(DEFAULT), None, folder, options))
    return open_engine(folder)


def hashes_of(engine: Engine) -> dict[str, Any]:
    return {"weights": weights_hash(engine), "steps": logit_hashes(engine)}


@pytest.mark.parametrize("features", FEATURES)
def test_a_tiny_model_has_the_same_logits_on_all_processors(features: str, tmp_path: Path) -> None:
    """It is in int8: 4-bit rounding weighs errors by sums, whose order numpy does not fix."""
    require_library()
    from bita.runtime.native.library import loaded_operators

    engine = native_engine(FEATURES[features], tmp_path, "int8")
    assert weights_hash(engine) == GOLDEN_HASHES[features]["weights"]
    for isa, hashes in hashes_by_isa(engine, loaded_operators().isas).items():
        assert hashes == GOLDEN_HASHES[features]["steps"], isa


@pytest.mark.model
def test_the_default_model_has_the_same_logits_and_text_on_all_processors(tmp_path: Path) -> None:
    require_library()
    engine = default_engine(tmp_path / "engine")
    assert hashes_of(engine) == GOLDEN_HASHES[DEFAULT]
    assert transcript(engine.path) == GOLDEN_HASHES["transcript"]


def write_golden() -> None:
    with tempfile.TemporaryDirectory() as work:
        engine = default_engine(Path(work) / "default")
        found: dict[str, Any] = {DEFAULT: hashes_of(engine), "transcript": transcript(engine.path)}
        for features, config in FEATURES.items():
            found[features] = hashes_of(native_engine(config, Path(work) / features, "int8"))
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    write_golden()
