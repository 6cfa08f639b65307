"""Tests of probes of an engine: moments, squares, and the error against float32."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from make_tiny_engine import write_plain_model

from bita.calibration.moments import collect_moments
from bita.calibration.probe import Probe, value_names
from bita.calibration.quality import Scored, measure_quality
from bita.calibration.ranges import collect_squares
from bita.engine import Engine, open_engine
from bita.errors import EngineError
from bita.export.architecture import read_architecture
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.checkpoint import Checkpoint
from bita.export.sources import open_checkpoint
from bita.runtime.session import Session

TEXTS = [[5, 9, 200, 31, 7, 88], [3, 4, *range(40, 60)], list(range(10, 260))]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(write_plain_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def engines(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    """Build engines in float32 and in int4 with rounding to nearest."""
    folder = tmp_path_factory.mktemp("engines")
    for precision in ("fp32", "int4"):
        build_engine(
            check_build(checkpoint, None, folder / precision, BuildOptions(precision, capacity=300))
        )
    return {path.name: open_engine(path) for path in folder.iterdir()}


def test_a_probe_in_pieces_equals_a_session(engines: dict[str, Engine]) -> None:
    probe = Probe(engines["fp32"], ["lm_head.input", "model.layers.0.mlp.down_proj.output"])
    session = Session.open(engines["fp32"].path)
    for text in [*TEXTS, TEXTS[0]]:
        pieces = [{k: v.copy() for k, v in piece.items()} for piece in probe.read(text)]
        whole = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        assert whole["logits"].shape == (len(text), 320)
        assert whole["model.layers.0.mlp.down_proj.output"].shape == (len(text), 32)
        table = open_table(engines["fp32"])
        np.testing.assert_allclose(
            whole["lm_head.input"] @ table.T, whole["logits"], rtol=1e-4, atol=1e-3
        )
        best = np.sort(whole["logits"][-1])
        assert session.margin(text) == pytest.approx(best[-1] - best[-2], abs=1e-3)


def open_table(engine: Engine) -> np.ndarray:
    """Return the embedding table of a float32 engine with tied embeddings."""
    graph = ir.load(engine.file("model.onnx")).graph
    tensor = graph.initializers["model.embed_tokens.weight"].const_value
    assert tensor is not None
    return np.array(tensor.numpy())


def test_probed_values_are_found_by_name(engines: dict[str, Engine]) -> None:
    names = value_names(engines["int4"], ".input")
    assert len(names) == 4 * engines["int4"].manifest.num_layers + 1
    assert value_names(engines["fp32"], ".input") == names
    with pytest.raises(EngineError, match=r"has no value 'nonsense'; rebuild it"):
        Probe(engines["fp32"], ["nonsense"])


@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_moments_are_sums_of_outer_products(
    memory: int,
    checkpoint: Checkpoint,
    engines: dict[str, Engine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bita.calibration.moments.MEMORY", memory)
    reference, reported = engines["fp32"], []
    architecture = read_architecture(checkpoint.config, 300)
    moments = collect_moments(
        *(reference, architecture, TEXTS, tmp_path / "moments"),
        on_progress=lambda done, total: reported.append((done, total)),
    )
    squares = collect_squares(reference, TEXTS, tmp_path / "squares")
    labels = [name.removesuffix(".input") for name in value_names(reference, ".input")]
    assert sorted(moments) == sorted(labels)
    assert reported[-1][0] == reported[-1][1] == len(TEXTS) * (len(labels) if memory == 1 else 1)
    for label in (labels[0], labels[5], labels[-1]):
        probe = Probe(reference, [f"{label}.input"])
        read = [p[f"{label}.input"].copy() for text in TEXTS for p in probe.read(text)]
        rows = np.concatenate(read)
        np.testing.assert_allclose(moments[label], rows.T @ rows, rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(squares[label], np.square(rows).sum(0), rtol=1e-3, atol=1e-2)
    assert "nonsense" not in moments


def test_an_engine_has_no_error_against_itself(engines: dict[str, Engine]) -> None:
    texts = [Scored(tuple(text), 3) for text in TEXTS]
    quality = measure_quality(engines["fp32"], engines["fp32"], texts)
    assert (quality.kl, quality.same_greedy, quality.worst_layer_error) == (0.0, 1.0, 0.0)
    assert quality.num_tokens == sum(len(text) - 3 for text in TEXTS)
    probe = Probe(engines["fp32"], [])
    losses = []
    for text in TEXTS:
        logits = np.concatenate([p["logits"].copy() for p in probe.read(text)]).astype(float)
        log_sums = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))
        losses += [
            log_sums[i - 1] + logits[i - 1].max() - logits[i - 1, text[i]]
            for i in range(3, len(text))
        ]
    assert quality.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert quality.reference_perplexity == quality.perplexity


def test_int4_has_an_error_against_float32(engines: dict[str, Engine]) -> None:
    texts = [Scored(tuple(text), 3) for text in TEXTS]
    quality = measure_quality(engines["fp32"], engines["int4"], texts)
    assert 1e-3 < quality.kl < 5
    assert 0 < quality.same_greedy < 1
    assert 0.01 < quality.worst_layer_error < 2
    assert quality.worst_layer in [
        name.removesuffix(".output") for name in value_names(engines["fp32"], ".output")
    ]
