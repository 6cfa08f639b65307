"""Weights that are not finite, or that their type cannot represent, never become an engine."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from make_tiny_engine import CONFIG, write_plain_model
from safetensors.numpy import load_file, save_file
from tiny_gguf import base_metadata, converted, llama_tensors, write_gguf
from tiny_models import ArrayCheckpoint

from bita.dialect_spec import DIALECTS
from bita.errors import AdapterError, ModelError
from bita.export.architecture import read_architecture
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.dialects.decoder import expected_shapes
from bita.export.dialects.graph_options import GraphOptions
from bita.export.dialects.step_graph import NOTHING_SEEN, Seen, export_step_graph
from bita.export.gguf.checkpoint import GgufCheckpoint
from bita.export.huggingface.checkpoint import SafetensorsCheckpoint
from bita.export.onnx.storage import narrowed
from bita.export.quantization.gptq import int4_pieces
from bita.export.quantization.int4 import Int4Grid, dequantize_int4, quantize_int4
from bita.export.quantization.int8 import rounded_rows
from bita.export.quantization.smoothing import smoothing
from bita.export.sources import open_checkpoint
from bita.pairs import tables_of
from bita.tensors import EMBEDDINGS, HEAD

WIDE = {**CONFIG, "hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": False}
LAYER = "model.layers.1."
BIAS = f"{LAYER}self_attn.q_proj.bias"
PARTS = ("input_layernorm", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj")
NAMES = (EMBEDDINGS, HEAD, "model.norm.weight", BIAS, *(f"{LAYER}{part}.weight" for part in PARTS))
WAYS = [(name, precision) for name, spec in DIALECTS.items() for precision in spec.precisions]


def arrays(scale: float = 0.3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {**expected_shapes(read_architecture(WIDE, 1)), BIAS: (64,)}
    return {name: rng.normal(0, scale, shape).astype(np.float32) for name, shape in shapes.items()}


def ranges(value: float = 3.0) -> dict[str, np.ndarray]:
    sizes = {"self_attn.qkv_proj": 64, "self_attn.o_proj": 64, "mlp.gate_up_proj": 64}
    found = {
        f"model.layers.{i}.{part}": np.full(size, value, np.float32)
        for i in range(2)
        for part, size in sizes.items()
    }
    return {**found, "lm_head": np.full(64, value, np.float32)} | {
        f"model.layers.{i}.mlp.down_proj": np.full(128, value, np.float32) for i in range(2)
    }


def export(
    out: Path,
    tensors: dict[str, np.ndarray],
    dialect: str,
    precision: str,
    seen: Seen | None = None,
) -> None:
    out.mkdir(exist_ok=True)
    checkpoint: Any = ArrayCheckpoint(WIDE, tensors)
    options = GraphOptions(64, precision, 4, dialect=dialect)
    if seen is None:
        seen = Seen(ranges=ranges()) if DIALECTS[dialect].needs_ranges(precision) else NOTHING_SEEN
    export_step_graph(checkpoint, read_architecture(WIDE, 64), out, options, seen)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_refuses_to_read_a_weight_that_is_not_finite(
    tmp_path: Path, name: str, value: float
) -> None:
    tensors = arrays()
    rows = tensors[name]
    place = (3,) if rows.ndim == 1 else (3, 5)
    rows[place] = value
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(WIDE))
    where = "at index 3" if rows.ndim == 1 else "at row 3, column 5"
    with pytest.raises(ModelError, match=rf"{name} is {value} {where}; .*Download the file again"):
        SafetensorsCheckpoint(tmp_path).read(name)
    with pytest.raises(ModelError, match=rf"{name} is {value} {where}"):
        SafetensorsCheckpoint(tmp_path).read(name, 2, 4)
    assert np.isfinite(SafetensorsCheckpoint(tmp_path).read(name, 4)).all()


@pytest.mark.parametrize("name", [EMBEDDINGS, f"{LAYER}self_attn.q_proj.weight"])
def test_a_gguf_weight_is_also_named_as_in_the_file(tmp_path: Path, name: str) -> None:
    tensors = llama_tensors()
    tensors[name][3, 5] = np.nan
    path = write_gguf(
        tmp_path / "m.gguf", "llama", base_metadata("llama"), converted("llama", tensors)
    )
    theirs = "token_embd" if name == EMBEDDINGS else r"blk\.1\.attn_q"
    # the row is that of transformers, because the file has its heads in another order
    with pytest.raises(ModelError, match=rf"{name} \({theirs}\.weight\) is nan at row 3, column 5"):
        GgufCheckpoint(path).read(name, 1)


def test_gguf_block_scales_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    import gguf

    kind = gguf.GGMLQuantizationType.Q4_0
    blocks = gguf.quants.quantize(np.ones((8, 64), np.float32), kind)
    for bits in (0x7C00, 0xFC00, 0x7E00):  # infinities and NaN of float16
        blocks[2, 18:20] = np.frombuffer(np.uint16(bits).tobytes(), np.uint8)
        path = write_gguf(
            tmp_path / "m.gguf",
            "llama",
            base_metadata("llama") | {"llama.vocab_size": None},
            {},
            {"token_embd.weight": (blocks, kind)},
        )
        with pytest.raises(ModelError, match=r"token_embd.*at row 2, column 32"):
            GgufCheckpoint(path).read(EMBEDDINGS)


@pytest.mark.parametrize(("dialect", "precision"), WAYS)
def test_a_nan_in_any_tensor_is_refused_in_every_precision(
    tmp_path: Path, dialect: str, precision: str
) -> None:
    for name in NAMES:
        tensors = arrays()
        tensors[name].reshape(-1)[7] = np.nan
        with np.errstate(invalid="ignore"), pytest.raises(ModelError, match=name):
            export(tmp_path, tensors, dialect, precision)


@pytest.mark.parametrize(("dialect", "precision"), WAYS)
def test_a_value_beyond_float16_is_refused_where_it_is_stored_in_float16(
    tmp_path: Path, dialect: str, precision: str
) -> None:
    compute_in_half = not DIALECTS[dialect].computes_in_float32 and precision != "fp32"
    scales_in_half = DIALECTS[dialect].has_blocks_only
    for name in (EMBEDDINGS, BIAS, f"{LAYER}mlp.down_proj.weight"):
        tensors = arrays()
        tensors[name].reshape(-1)[7] = 1e8 if "down" in name else 7e4
        stored_in_half = {
            EMBEDDINGS: precision == "fp16" or compute_in_half,
            BIAS: compute_in_half,
        }.get(name, precision == "fp16" or compute_in_half or scales_in_half)
        if stored_in_half:
            with pytest.raises(ModelError, match=rf"{name}.*PRECISION=fp32"):
                export(tmp_path, tensors, dialect, precision)
        else:
            export(tmp_path, tensors, dialect, precision)


def test_the_largest_float16_is_kept_and_larger_values_are_refused() -> None:
    rows = np.array([[1.0, 65519.0]], np.float32)
    assert narrowed("w", rows, np.float16)[0, 1] == 65504
    with pytest.raises(
        ModelError, match="w is 65520 at row 4, column 1, which float16 cannot hold"
    ):
        narrowed("w", np.array([[1.0, 65520.0]]), np.float16, 4)
    many = np.full((4096, 256), 100.0, np.float32)  # the sum of their squares is above 65520²
    np.testing.assert_array_equal(narrowed("w", many, np.float16), 100)


def test_a_tensor_that_vanishes_in_float16_is_refused(tmp_path: Path) -> None:
    tensors = arrays()
    tensors[HEAD] *= 1e-9
    with pytest.raises(ModelError, match=rf"the numbers of {HEAD} are so small"):
        export(tmp_path, tensors, "ort", "fp16")


def test_input_ranges_beyond_float16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"input of .*qkv_proj, as seen in calibration, is 1e\+06"):
        export(tmp_path, arrays(), "standard", "int8", Seen(ranges=ranges(1e6)))


def test_an_engine_of_a_broken_model_is_not_written(tmp_path: Path) -> None:
    source = write_plain_model(tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    tensors[f"{LAYER}mlp.up_proj.weight"][3, 4] = np.nan
    save_file(tensors, source / "model.safetensors")
    build = check_build(
        open_checkpoint(str(source)), None, tmp_path / "engine", BuildOptions(capacity=64)
    )
    with pytest.raises(ModelError, match=r"mlp\.up_proj\.weight is nan at row 3, column 4"):
        build_engine(build)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_bfloat16_beyond_float16_is_refused_by_name(tmp_path: Path) -> None:
    source = write_plain_model(tmp_path / "model")
    tensors = {
        name: rows.astype(ml_dtypes.bfloat16)
        for name, rows in load_file(source / "model.safetensors").items()
    }
    tensors[EMBEDDINGS][9, 2] = 3e38
    save_file(tensors, source / "model.safetensors")
    build = check_build(
        open_checkpoint(str(source)), None, tmp_path / "engine", BuildOptions("fp16", capacity=64)
    )
    with pytest.raises(ModelError, match=rf"{EMBEDDINGS} is 3.* at row 9, column 2, which float16"):
        build_engine(build)


@pytest.mark.parametrize("size", [0.0, 1e-43, 1e-42, 1e-38, 1e-30, 1e30, 3e38])
def test_rows_of_any_size_are_rounded_to_near_values(size: float) -> None:
    rng = np.random.default_rng(0)
    with np.errstate(under="ignore"):
        rows = (rng.uniform(-1, 1, (4, 64)) * size).astype(np.float32)
    values, scales = rounded_rows(rows)
    assert np.all(np.abs(values * scales[:, None] - rows) <= scales[:, None] * 0.501)
    packed, scales = quantize_int4(rows)
    step = np.abs(np.repeat(scales, 32, 1))
    near = dequantize_int4(packed, scales, 64)
    assert np.all(np.abs(near - rows) <= step * 1.001)  # the opposite extreme is clipped to 7
    assert np.all((scales != 0) == (np.abs(rows).reshape(4, 2, 32).max(-1) > 0))


@pytest.mark.parametrize("negative", [True, False])
@pytest.mark.parametrize("size", [1e-7, 3e-7, 1e-6, 1e-5, 1e-4, 1.0])
def test_small_blocks_are_not_lost_with_float16_scales(size: float, negative: bool) -> None:
    rows = (np.random.default_rng(0).uniform(-1, 1, (8, 64)) * size).astype(np.float32)
    packed, scales = quantize_int4(rows, Int4Grid(32, negative, np.float16))
    np.testing.assert_array_equal(scales.astype(np.float16).astype(np.float32), scales)
    near = dequantize_int4(packed, scales, 64)
    step = np.abs(np.repeat(scales, 32, 1))
    assert np.all(np.abs(near - rows) <= step * 1.01)
    assert np.all(step <= size / 7 + 2.0**-24)


def test_smoothing_factors_stay_within_float16() -> None:
    largest = np.array([1e6, 1e-6, 1.0], np.float32)
    weights = [np.array([[1e-9, 1e9, 1.0]], np.float32)]
    factors = smoothing(largest, weights, most=127).factors
    assert np.all(np.isfinite(factors.astype(np.float16)) & np.isfinite(1 / factors))
    assert np.all((1 / factors).astype(np.float16) > 0)


def test_overflowed_moments_are_refused_with_the_layer() -> None:
    moments = {"mlp": np.full((32, 32), np.inf, np.float32)}
    with pytest.raises(ModelError, match=r"inputs of mlp .*--quantizer rtn"):
        next(int4_pieces([np.ones((2, 32), np.float32)], moments, "mlp"))


def test_pair_tables_beyond_float16_are_refused() -> None:
    pairs = {
        "pair_left": np.ones((4, 2), np.float32),
        "pair_bias": np.zeros(2, np.float32),
        "pair_right": np.full((4, 2), 1e5, np.float32),
    }
    with pytest.raises(AdapterError, match=r"pair_right .* token 1"):
        tables_of([np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)], pairs)
