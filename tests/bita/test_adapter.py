"""Adapter files: loading returns what was saved, and all faults of a file are reported."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_models import random_checkpoint

from bita.adapter import Adapter, random_adapter, untuned_adapter
from bita.errors import AdapterError
from bita.identity import ModelIdentity, identify
from bita.tensors import EMBEDDINGS


@pytest.fixture(scope="module")
def identity() -> ModelIdentity:
    return identify(random_checkpoint())


@pytest.fixture
def adapter(identity: ModelIdentity) -> Adapter:
    return random_adapter(identity, num_masks=3, prefix_length=5)


def write(path: Path, adapter: Adapter, metadata: dict[str, str | None], **tensors: Any) -> Path:
    """Write a file with some metadata and tensors replaced, or left out where they are None."""
    adapter.save(path)
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    stated = {**json.loads(header["__metadata__"]["bita-adapter"]), **metadata}
    stored = {**adapter.tensors(), **tensors}
    save_file(
        {name: array for name, array in stored.items() if array is not None},
        path,
        {"bita-adapter": json.dumps({k: v for k, v in stated.items() if v is not None})},
    )
    return path


def test_equal_adapters_give_identical_files(adapter: Adapter, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        adapter.save(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in ("a", "b", "c")}) == 1


def message_of(path: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        Adapter.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("prefix_length", [0, 5])
def test_load_returns_the_saved_adapter(
    identity: ModelIdentity, tmp_path: Path, prefix_length: int
) -> None:
    adapter = random_adapter(identity, 2, prefix_length)
    adapter.save(tmp_path / "new" / "a.safetensors")
    loaded = Adapter.load(tmp_path / "new" / "a.safetensors")
    for name, array in adapter.tensors().items():
        np.testing.assert_array_equal(loaded.tensors()[name], array)
        assert loaded.tensors()[name].dtype == np.float32
    assert (loaded.num_masks, loaded.prefix_length) == (2, prefix_length)
    assert (loaded.identity, loaded.tuned_on) == (adapter.identity, "random")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_half_precision_becomes_float32(adapter: Adapter, tmp_path: Path) -> None:
    half = write(
        tmp_path / "half",
        adapter,
        {},
        **{name: array.astype(np.float16) for name, array in adapter.tensors().items()},
    )
    loaded = Adapter.load(half)
    assert loaded.prefix_keys.dtype == np.float32
    np.testing.assert_allclose(loaded.prefix_keys, adapter.prefix_keys, rtol=1e-3, atol=1e-6)


def test_bfloat16_becomes_float32(adapter: Adapter, tmp_path: Path) -> None:
    adapter.save(tmp_path / "full")
    raw = (tmp_path / "full").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    data = b""
    for name, array in adapter.tensors().items():
        upper = (array.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header[name].update(dtype="BF16", data_offsets=[len(data), len(data) + len(upper)])
        data += upper
    text = json.dumps(header).encode()
    (tmp_path / "bf16").write_bytes(len(text).to_bytes(8, "little") + text + data)
    loaded = Adapter.load(tmp_path / "bf16")
    assert loaded.prefix_values.dtype == np.float32
    np.testing.assert_allclose(loaded.prefix_values, adapter.prefix_values, rtol=2**-7)
    np.testing.assert_allclose(loaded.mask_embeddings, adapter.mask_embeddings, rtol=2**-7)


def test_a_failed_save_leaves_the_old_file(adapter: Adapter, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    adapter.save(path)
    before = path.read_bytes()
    adapter.mask_embeddings[1, 7] = np.nan
    adapter.prefix_values[0] = np.inf
    with pytest.raises(AdapterError) as caught:
        adapter.save(path)
    assert "2 faults" in str(caught.value)
    assert "mask_embeddings has 1 of 192 values that are not finite" in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [65520.0, -1e5, 3e38])
def test_values_that_float16_cannot_hold_are_refused_by_name(
    adapter: Adapter, value: float, tmp_path: Path
) -> None:
    large = adapter.prefix_keys.copy()
    large[1, 0, 2] = value
    fault = f"prefix_keys has 16 of {large.size} values beyond 65504"
    assert fault in message_of(write(tmp_path / "a", adapter, {}, prefix_keys=large))
    with pytest.raises(AdapterError, match=fault):
        replace(adapter, prefix_keys=large).save(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    largest = replace(adapter, prefix_keys=large.clip(-65504, 65504))
    largest.save(tmp_path / "c")
    np.testing.assert_array_equal(Adapter.load(tmp_path / "c").prefix_keys, largest.prefix_keys)


def test_values_read_by_steps_are_bounded(adapter: Adapter) -> None:
    assert all(adapter.bounded[name] is array for name, array in adapter.tensors().items())
    keys, masks = adapter.prefix_keys.copy(), adapter.mask_embeddings.copy()
    keys[0, 0, 0, :5] = 1e38, -1e38, np.inf, -np.inf, np.nan
    masks[0, :3] = 60000.0, -1e38, np.nan
    bounded = replace(adapter, prefix_keys=keys, mask_embeddings=masks).bounded
    assert bounded["prefix_keys"][0, 0, 0, :5].tolist() == [1000, -1000, 1000, -1000, 0]
    assert bounded["mask_embeddings"][0, :3].tolist() == [60000, -65504, 0]
    np.testing.assert_array_equal(bounded["prefix_keys"][1:], adapter.prefix_keys[1:])
    assert all(array.dtype == np.float32 for array in bounded.values())


def test_missing_truncated_and_foreign_files_have_separate_messages(
    adapter: Adapter, tmp_path: Path
) -> None:
    assert "does not exist" in message_of(tmp_path / "nothing")
    assert "not a whole safetensors file" in message_of(tmp_path)
    adapter.save(tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-1])
    assert "not a whole safetensors file" in message_of(tmp_path / "cut")
    save_file({"lm_head.weight": np.zeros(3)}, tmp_path / "model")
    assert "not an adapter: its metadata has no 'bita-adapter'" in message_of(tmp_path / "model")


def test_all_faults_of_a_file_are_listed(adapter: Adapter, tmp_path: Path) -> None:
    broken = adapter.mask_embeddings.copy()
    broken[0, 0] = np.inf
    path = write(
        tmp_path / "a",
        adapter,
        {"format_version": "7", "num_masks": "4", "tuned_on": None},
        mask_embeddings=broken,
        prefix_keys=adapter.prefix_keys[:, :1],
        prefix_values=None,
    )
    message = message_of(path)
    assert "6 faults" in message
    for part in (
        "format_version is '7', this bita-edge reads '1', '2', '3', '4': upgrade it",
        "metadata has no 'tuned_on'",
        "metadata num_masks is '4', mask_embeddings has 3",
        "mask_embeddings has 1 of 192 values that are not finite",
        "prefix_keys is [4, 1, 5, 16], not [4, 2, P, 16]",
        "tensor 'prefix_values' is missing",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("tensors", "part"),
    [
        ({"mask_embeddings": np.zeros((3, 65))}, "mask_embeddings is [3, 65], not [M, 64]"),
        ({"mask_embeddings": np.zeros(64)}, "mask_embeddings is [64], not [M, 64]"),
        ({"mask_embeddings": np.zeros((0, 64))}, "mask_embeddings has no rows"),
        ({"prefix_values": np.zeros((4, 2, 6, 16))}, "but prefix_values is [4, 2, 6, 16]"),
        ({"prefix_values": np.zeros((4, 2, 5))}, "prefix_values is [4, 2, 5], not [4, 2, P, 16]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    adapter: Adapter, tmp_path: Path, tensors: dict[str, Any], part: str
) -> None:
    halves = {name: array.astype(np.float32) for name, array in tensors.items()}
    assert part in message_of(write(tmp_path / "a", adapter, {}, **halves))
    with pytest.raises(AdapterError) as caught:
        Adapter(**{**adapter.tensors(), **halves}, identity=adapter.identity)
    assert part in str(caught.value)


def test_shapes_are_checked_without_an_identity_too(adapter: Adapter, tmp_path: Path) -> None:
    values = np.zeros((4, 2, 5), np.float32)
    message = message_of(write(tmp_path / "a", adapter, {"identity": "{}"}, prefix_values=values))
    assert "architecture is missing" in message
    assert "prefix_values is [4, 2, 5], not [L, H, P, D]" in message


def test_tensors_of_integer_types_are_refused(adapter: Adapter, tmp_path: Path) -> None:
    whole = adapter.mask_embeddings.astype(np.int8)
    message = message_of(write(tmp_path / "a", adapter, {}, mask_embeddings=whole))
    assert "tensor 'mask_embeddings' has type I8, not one of F32, F16, BF16" in message


def test_check_fits_names_each_difference(adapter: Adapter) -> None:
    adapter.check_fits(identify(random_checkpoint()))
    with pytest.raises(AdapterError) as caught:
        adapter.check_fits(identify(random_checkpoint(1, num_hidden_layers=4, model_type="qwen2")))
    message = str(caught.value)
    assert "tune one" in message
    assert "architecture 'llama' against 'qwen2'" in message
    assert "weights are of another model: model.embed_tokens.weight has cosine" in message


def test_untuned_masks_are_the_mean_embedding() -> None:
    checkpoint = random_checkpoint()
    checkpoint.tensors[EMBEDDINGS] += np.arange(64, dtype=np.float32)
    adapter = untuned_adapter(checkpoint, num_masks=2, prefix_length=7, seed=3)
    mean = checkpoint.tensors[EMBEDDINGS].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(adapter.mask_embeddings, [mean, mean], rtol=1e-6)
    assert adapter.prefix_keys.shape == adapter.prefix_values.shape == (4, 2, 7, 16)
    assert 0.015 < adapter.prefix_keys.std() < 0.025
    assert not np.array_equal(adapter.prefix_keys, adapter.prefix_values)
    assert adapter.tuned_on == "untuned"
    again = untuned_adapter(checkpoint, num_masks=2, prefix_length=7, seed=3)
    np.testing.assert_array_equal(again.prefix_keys, adapter.prefix_keys)


def test_the_default_adapter_has_no_prefix() -> None:
    assert untuned_adapter(random_checkpoint()).prefix_keys.shape == (4, 2, 0, 16)


def test_a_save_replaces_the_file_at_once(identity: ModelIdentity, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    random_adapter(identity, seed=1).save(path)
    before = path.read_bytes()
    with path.open("rb") as reader:  # a process that has the old file open keeps the old file
        random_adapter(identity, seed=2).save(path)
        assert reader.read() == before != path.read_bytes()


def test_a_save_that_cannot_finish_leaves_nothing(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="a"):
        adapter.save(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
