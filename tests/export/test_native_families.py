"""Engines with native operators match transformers: all families, node and mask rows, cached steps.

The engines differ by 8-bit blocks of weights, 8-bit blocks of activations, and a float16 cache.
Random layers amplify these rounding errors, so the bound is the error of the same roundings in the
operators' numpy definition.
"""

from pathlib import Path

import numpy as np
import pytest
from native_engines import lora_adapter, require_library, run_with
from native_twins import TREE, relative_error
from reference_session import use_reference_operators
from tiny_models import FAMILIES, write_tiny_model

from bita.adapter import Adapter
from bita.engine import Engine, open_engine
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
from bita.runtime.backends.layout import prefill_layout, tree_layout
from bita.runtime.backends.ort_backend import OrtBackend

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROUNDED = 0.2  # relative error of logits; unrelated logits have 1.4
CACHE_AND_WEIGHTS = 0.16  # with float activations
MORE = 1.05  # times the error of the numpy definition


def logits_of(engine: Engine, adapter: Adapter, text: list[int], drafts: list[int]) -> np.ndarray:
    """Return the logits of all rows of TREE after a text."""
    backend = OrtBackend(engine, num_threads=1)
    backend.cache.start(adapter)
    for start in range(0, len(text) - 1, 25):
        piece = np.array(text[:-1][start : start + 25])
        run_with(backend.bind(prefill_layout(len(piece), 0, 1), adapter), piece)
        backend.cache.length += len(piece)
    step = backend.bind(tree_layout(TREE, 1), adapter, with_logits=True)
    return run_with(step, np.array([text[-1], *drafts]))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers_within_rounding_errors(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bita.torch.reference import ReferenceDecoder, load_reference_model

    require_library()
    model = write_tiny_model(family, tmp_path / "model")
    adapter = lora_adapter(model, scale=0.5)
    options = BuildOptions("int8", capacity=160, tree=TREE, dialect="native")
    build_engine(check_build(open_checkpoint(str(model)), adapter, tmp_path / "engine", options))
    engine = open_engine(tmp_path / "engine")
    rng = np.random.default_rng(1)
    text = rng.integers(3, 300, 60).tolist()
    drafts = rng.integers(3, 300, TREE.num_nodes - 1).tolist()
    reference = ReferenceDecoder(load_reference_model(model), adapter)
    parts = reference.step_outputs(text, TREE, drafts)
    expected = np.concatenate([part.numpy() for part in parts])
    error = relative_error(logits_of(engine, adapter, text, drafts), expected)
    with monkeypatch.context() as patch:
        use_reference_operators(patch)
        of_weights = relative_error(logits_of(engine, adapter, text, drafts), expected)
    with monkeypatch.context() as patch:
        use_reference_operators(patch, rounds=True)
        by_definition = relative_error(logits_of(engine, adapter, text, drafts), expected)
    assert expected.std() > 1
    assert error < ROUNDED
    assert of_weights < CACHE_AND_WEIGHTS
    assert error < MORE * by_definition
