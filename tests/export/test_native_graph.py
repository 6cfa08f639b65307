"""Graphs of native operators, by the numpy definition, match the ort dialect's in float32.

The ort engine has exactly the weights in the blocks of the native graph.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_engine import CONFIG, write_plain_model
from native_engines import FEATURES, lora_adapter, require_library, run_with
from native_twins import relative_error, tree_logits, twin_engines
from reference_session import use_reference_operators
from speed import slow_but

from bita.adapter import Adapter
from bita.engine import Engine
from bita.runtime.backends.layout import prefill_layout
from bita.runtime.backends.ort_backend import OrtBackend

TOLERANCE = 2e-4
# Relative errors of logits. Layers of random weights amplify errors: 8-bit activations cost up to
# 0.15 here, and a float16 cache costs 0.003.
ROUNDED, HALF = 0.25, 0.005
# If a value is halfway between two 8-bit steps, the last bits of float32 decide, and the library
# may round it the other way. Results without such a value differ by 1e-6.
HALFWAY, EQUAL = 0.04, 1e-5
NUM_TEXTS = 12
MORE: dict[str, Mapping[str, Any]] = {
    **FEATURES,
    "half of a head rotates": {
        **CONFIG,
        **{"model_type": "phi3", "head_dim": 32, "partial_rotary_factor": 0.5},
    },
    "biases everywhere": {**CONFIG, "attention_bias": True, "mlp_bias": True},
}


@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("features", slow_but(MORE, "llama3", "gemma3_text", "long"))
def test_logits_equal_those_of_the_ort_dialect(
    features: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare nodes and masks after a cached text for every combination of model features."""
    model = write_plain_model(tmp_path / "model", config=MORE[features])
    adapter = lora_adapter(model, scale=0.5)
    native, other = twin_engines(model, adapter, tmp_path, precision, "float32")
    use_reference_operators(monkeypatch)
    found, expected = tree_logits(native, adapter), tree_logits(other, adapter)
    assert expected.std() > 1  # otherwise a tolerance in logits proves nothing
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * expected.std(), rtol=0)


@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("features", slow_but(MORE, "llama3", "gemma3_text", "long"))
def test_the_library_computes_the_same_as_the_definition(
    features: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_library()
    model = write_plain_model(tmp_path / "model", scale=0.3, config=MORE[features])
    adapter = lora_adapter(model, scale=0.5)
    native, other = twin_engines(model, adapter, tmp_path, precision, "float16")
    expected, found = tree_logits(other, adapter), tree_logits(native, adapter)
    alone = short_texts(native, adapter)
    assert relative_error(found, expected) < ROUNDED
    with monkeypatch.context() as patch:
        use_reference_operators(patch)
        assert relative_error(tree_logits(native, adapter), expected) < HALF
    with monkeypatch.context() as patch:
        use_reference_operators(patch, rounds=True)
        assert relative_error(found, tree_logits(native, adapter)) < HALFWAY
        pairs = zip(alone, short_texts(native, adapter), strict=True)
        errors = sorted(relative_error(*pair) for pair in pairs)
    assert errors[NUM_TEXTS // 4] < EQUAL


def short_texts(engine: Engine, adapter: Adapter) -> list[np.ndarray]:
    """Return the logits of three tokens and two masks without a cached text, for several texts."""
    backend = OrtBackend(engine, num_threads=1)
    layout = replace(prefill_layout(3, 2, 1), output_rows=np.arange(5))
    backend.cache.start(adapter)
    step = backend.bind(layout, adapter, with_logits=True)
    tokens = np.random.default_rng(4).integers(3, 300, (NUM_TEXTS, 3))
    return [run_with(step, text) for text in tokens]
