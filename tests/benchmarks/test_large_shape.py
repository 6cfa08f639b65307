"""Tests of benchmarks/large_shape.py: weights are kept as written, figures computed by hand."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from gguf import GGMLQuantizationType as Kind
from kept_blocks import count_kept, step_weight_bytes
from large_model import write_model
from large_shape import run_measured
from large_shape_report import summarize
from peer_process import PeerError

from bita.engine import Engine, open_engine
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint

CONFIG: dict[str, Any] = {
    **{"vocab_size": 48, "max_position_embeddings": 128, "hidden_size": 64},
    **{"num_hidden_layers": 2, "intermediate_size": 96, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 16, "rope_theta": 5000.0, "rms_norm_eps": 1e-5},
}


def write(folder: Path, kind: Kind, vocab_size: int = 48) -> Path:
    fields = {"bos_token_id": 2, "merges": ["A B"]}  # a GGUF file needs at least one merge
    metadata = {
        **tiny_gguf.base_metadata("llama"),
        **{f"tokenizer.ggml.{key}": value for key, value in fields.items()},
        "tokenizer.chat_template": "{{ messages }}",
    }
    tokenizer = tiny_gguf.write_gguf(folder / "tokenizer.gguf", "llama", metadata, {})
    path = folder / f"model-{vocab_size}.{kind.name}.gguf"
    write_model(path, kind, tokenizer, {**CONFIG, "vocab_size": vocab_size})
    return path


def build(model: Path, out: Path, dialect: str) -> Engine:
    build_engine(check_build(open_checkpoint(str(model)), None, out, BuildOptions(dialect=dialect)))
    return open_engine(out)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1])
def test_an_engine_keeps_the_quantized_weights_of_the_file(tmp_path: Path, kind: Kind) -> None:
    model = write(tmp_path, kind)
    engine, checkpoint = build(model, tmp_path / "engine", "native"), open_checkpoint(str(model))
    num_weights = 48 * 64 + 2 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96)
    assert count_kept(engine, checkpoint) == {"weights": num_weights, "kept": num_weights}
    assert len(open_checkpoint(str(model)).text_assets().tokenizer_json) > 0
    assert checkpoint.read("model.layers.1.mlp.up_proj.weight").std() == pytest.approx(
        0.02, rel=0.1
    )


def test_weights_of_another_file_do_not_count_as_kept(tmp_path: Path) -> None:
    engine = build(write(tmp_path, Kind.Q4_0), tmp_path / "engine", "native")
    found = count_kept(engine, open_checkpoint(str(write(tmp_path, Kind.Q4_1))))
    table = 48 * 64  # has the same weights in every format
    assert table <= found["kept"] < table + 0.2 * (found["weights"] - table)


@pytest.mark.parametrize(
    ("dialect", "row_bytes"),
    [
        ("native", 64 + 2 * 2),  # one 8-bit table for embeddings and output
        (
            "ort",
            64 // 2 + 2 * 4,
        ),  # the output layer has 4 bits; a step reads only single rows of the table
    ],
)
def test_a_step_reads_the_output_layer_only(tmp_path: Path, dialect: str, row_bytes: int) -> None:
    sizes = [
        step_weight_bytes(build(write(tmp_path, Kind.Q4_0, size), tmp_path / str(size), dialect))
        for size in (48, 96)
    ]
    assert sizes[1] - sizes[0] == 48 * row_bytes


def test_the_summary_equals_figures_computed_by_hand() -> None:
    def found(copy_speed: float, step_ms: list[float], token_ms: list[float]) -> dict[str, Any]:
        return {
            "copy_gb_per_s": copy_speed,
            "step_ms": {"native Q4_0": {"1": step_ms, "2": [2 * ms for ms in step_ms]}},
            "llama_cpp": {"Q4_0": {"weight_bytes": 6_000_000, "token_ms": token_ms}},
        }

    rounds = [found(2.0, [4.0, 5.0], [10.0]), found(4.0, [6.0], [20.0, 12.0])]
    report = summarize(rounds, {"native Q4_0": 5_000_000}, 128)
    ours, theirs = report["engines"]["native Q4_0"], report["llama_cpp"]["Q4_0"]
    assert (ours["tokens_per_second"], ours["weights_gb_per_s"]) == (200.0, 1.0)
    assert (ours["share_of_copy"], theirs["share_of_copy"]) == (0.25, 0.125)
    assert ours["after"]["128"]["2"]["ratio_of_p50"] == 2.0
    assert ours["times_llama_cpp"] == pytest.approx(12 / 5, abs=1e-2)


def test_a_program_is_run_and_measured() -> None:
    code = "import numpy as np; a = np.ones(40 << 20, np.uint8); print('done')"
    found = run_measured([sys.executable, "-c", code])
    assert found["output"] == ["done"]
    assert found["peak_mb"] > 40
    assert np.isfinite(found["seconds"])
    with pytest.raises(PeerError, match="ended with exit status 3"):
        run_measured([sys.executable, "-c", "raise SystemExit(3)"])
