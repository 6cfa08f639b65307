"""Tests of safetensors directories: exact reads of single rows, and damage reported early."""

import json
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from weight_writers import CONFIG, random, write_model, write_shards, write_weights

from bita.errors import ModelError
from bita.export.huggingface.checkpoint import SafetensorsCheckpoint
from bita.tensors import row_chunks

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_range_is_exact_float32(tmp_path: Path, dtype: str) -> None:
    matrix, vector = random(11, 5, dtype=DTYPES[dtype]), random(7, dtype=DTYPES[dtype])
    model = SafetensorsCheckpoint(write_model(tmp_path, {"a": vector, "m": matrix, "z": vector}))
    assert model.names() == {"a", "m", "z"}
    for name, expected in (("m", matrix), ("z", vector)):
        assert model.shape(name) == expected.shape
        for start in range(len(expected) + 1):
            for stop in range(start, len(expected) + 1):
                rows = model.read(name, start, stop)
                assert rows.dtype == np.float32
                assert rows.flags.c_contiguous
                np.testing.assert_array_equal(rows, expected[start:stop].astype(np.float32))
    np.testing.assert_array_equal(model.read("m"), matrix.astype(np.float32))


def test_bfloat16_keeps_its_range_and_signs(tmp_path: Path) -> None:
    values = np.array([0.0, -0.0, 3e38, -3e38, -1e-38], ml_dtypes.bfloat16)
    read = SafetensorsCheckpoint(write_model(tmp_path, {"v": values})).read("v")
    np.testing.assert_array_equal(read, values.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(read), np.signbit(values.astype(np.float32)))


def test_only_the_requested_rows_are_in_memory(tmp_path: Path) -> None:
    model = SafetensorsCheckpoint(write_model(tmp_path, {"m": np.ones((4096, 512), np.float16)}))
    tracemalloc.start()
    rows = model.read("m", 4000, 4002)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows.shape == (2, 512)
    assert peak_bytes < 100_000  # the tensor has 4 MB


def test_chunks_cover_a_tensor(tmp_path: Path) -> None:
    matrix = random(50, 6)
    model = SafetensorsCheckpoint(write_model(tmp_path, {"m": matrix}))
    chunks = list(row_chunks(model, "m", chunk_bytes=4 * 6 * 7))
    assert [len(chunk) for chunk in chunks] == [7] * 7 + [1]
    np.testing.assert_array_equal(np.concatenate(chunks), matrix)


def test_shards_form_one_model(tmp_path: Path) -> None:
    first, second = random(4, 3), random(2, 3)
    shards = {"a-1.safetensors": {"x": first}, "a-2.safetensors": {"y": second}}
    model = SafetensorsCheckpoint(write_shards(tmp_path, shards))
    assert model.names() == {"x", "y"}
    np.testing.assert_array_equal(model.read("y", 1), second[1:])
    np.testing.assert_array_equal(model.read("x"), first)


def test_missing_and_truncated_shards_are_named_together(tmp_path: Path) -> None:
    tensors = {name: {name: random(64, 4)} for name in "abcd"}
    shards = {f"{name}.safetensors": value for name, value in tensors.items()}
    write_shards(tmp_path, shards)
    (tmp_path / "a.safetensors").unlink()
    (tmp_path / "b.safetensors").unlink()
    whole = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ModelError) as caught:
        SafetensorsCheckpoint(tmp_path)
    message = str(caught.value)
    assert "2 faults" in message
    assert "2 of 4 weight files are missing: a.safetensors, b.safetensors" in message
    truncated = f"it is truncated: {len(whole) - 100} bytes of {len(whole)}"
    assert f"c.safetensors is not a whole safetensors file ({truncated})" in message
    assert "d.safetensors" not in message


def test_an_index_with_missing_tensors_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a.safetensors": {"x": random(2, 2), "lost": random(2, 2)}})
    write_weights(tmp_path / "a.safetensors", {"x": random(2, 2)})
    with pytest.raises(ModelError, match=r"names tensors that no file has: lost"):
        SafetensorsCheckpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its header of 0 bytes does not fit into 0 bytes"),
        (b"<!DOCTYPE html><html>not found</html>", "is not a whole safetensors file"),
        (b"\x08" + bytes(7) + b"not json", "Expecting value"),
        (b"\x02" + bytes(7) + b"[]", "its header is .*, not an object"),
        (b"\x0c" + bytes(7) + b'{"a": [1,2]}', "its header is broken: a is"),
    ],
)
def test_files_that_are_not_safetensors_are_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    write_model(tmp_path, {"m": random(2, 2)})
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        SafetensorsCheckpoint(tmp_path)


def test_offsets_that_contradict_the_shape_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path, {"m": random(4, 4)})
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"[4,4]", b"[4,9]"))
    with pytest.raises(ModelError, match=r"m \[4, 9\] F32 takes 144 bytes.*\[0, 64\)"):
        SafetensorsCheckpoint(tmp_path)


def test_pickles_are_refused_with_a_hint_to_convert_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        SafetensorsCheckpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*convert them to safetensors"):
        SafetensorsCheckpoint(tmp_path)


def test_a_missing_or_invalid_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing.*whole model directory"):
        SafetensorsCheckpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not readable JSON.*download it again"):
        SafetensorsCheckpoint(tmp_path)


def test_eight_bit_floats_and_integers_are_refused(tmp_path: Path) -> None:
    model = SafetensorsCheckpoint(write_model(tmp_path, {"i": np.ones((2, 2), np.int32)}))
    with pytest.raises(ModelError, match=r"i is I32; weights must be F32, F16, BF16"):
        model.read("i")
    header = b'{"w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    content = len(header).to_bytes(8, "little") + header + b"\0\0"
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"1 tensors are 8-bit floats \(w is F8_E4M3\).*16-bit"):
        SafetensorsCheckpoint(tmp_path)


def test_unknown_names_and_rows_are_refused(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": random(3, 2)}
    model = SafetensorsCheckpoint(write_model(tmp_path, tensors), "org/model")
    with pytest.raises(ModelError, match=r"org/model has no tensor .*; close names: model"):
        model.shape("model.embed_token.weight")
    with pytest.raises(ModelError, match=r"has 3 rows, not \[2, 4\)"):
        model.read("model.embed_tokens.weight", 2, 4)


PHI3 = {
    **{"model_type": "phi3", "hidden_size": 8, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "intermediate_size": 6},
}


def test_fused_tensors_of_phi3_become_views(tmp_path: Path) -> None:
    qkv, gate_up = random(16, 8), random(12, 8)
    prefix = "model.layers.0"
    tensors = {
        f"{prefix}.self_attn.qkv_proj.weight": qkv,
        f"{prefix}.mlp.gate_up_proj.weight": gate_up,
        f"{prefix}.mlp.down_proj.weight": random(8, 6),
    }
    model = SafetensorsCheckpoint(write_model(tmp_path, tensors, PHI3))
    expected = {
        "self_attn.q_proj": qkv[:8],
        "self_attn.k_proj": qkv[8:12],
        "self_attn.v_proj": qkv[12:],
        "mlp.gate_proj": gate_up[:6],
        "mlp.up_proj": gate_up[6:],
        "mlp.down_proj": tensors[f"{prefix}.mlp.down_proj.weight"],
    }
    assert model.names() == {f"{prefix}.{name}.weight" for name in expected}
    for name, value in expected.items():
        assert model.shape(f"{prefix}.{name}.weight") == value.shape
        np.testing.assert_array_equal(model.read(f"{prefix}.{name}.weight"), value)
        np.testing.assert_array_equal(model.read(f"{prefix}.{name}.weight", 1, 3), value[1:3])
    with pytest.raises(ModelError, match=r"has 4 rows, not \[0, 5\)"):
        model.read(f"{prefix}.self_attn.k_proj.weight", 0, 5)


def test_fused_rows_that_contradict_the_config_are_refused(tmp_path: Path) -> None:
    tensors = {"model.layers.0.self_attn.qkv_proj.weight": random(20, 8)}
    with pytest.raises(ModelError, match=r"has 20 rows; the config asks for 8 \+ 4 \+ 4"):
        SafetensorsCheckpoint(write_model(tmp_path, tensors, PHI3))


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n", "Apache-2.0"),
        ('---\nlicense: "mit"\n---\n', "MIT"),
        ("---\nlicense: llama3.2\n---\n", "llama3.2"),
        ("# Model\nlicense: mit\n", None),
        (None, None),
    ],
)
def test_the_license_comes_from_the_model_card(
    tmp_path: Path, readme: str | None, expected: str | None
) -> None:
    write_model(tmp_path, {"m": random(2, 2)})
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert SafetensorsCheckpoint(tmp_path).license == expected
