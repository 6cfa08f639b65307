"""Tests of model identity: which copies count as the same model, and which do not."""

import dataclasses
import json

import numpy as np
import numpy.typing as npt
import pytest
from tiny_models import ArrayCheckpoint, random_checkpoint

from bita.errors import ModelError
from bita.identity import ModelIdentity, identify
from bita.tensors import EMBEDDINGS, row_chunks

QUERY = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.3.mlp.down_proj.weight"


def quantize(array: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.float32]:
    """Round to integers in blocks of 32, and dequantize."""
    blocks = array.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    return (np.round(blocks / scale) * scale).reshape(array.shape)


def copy_of(checkpoint: ArrayCheckpoint, bits: int) -> ArrayCheckpoint:
    tensors = {name: quantize(array, bits) for name, array in checkpoint.tensors.items()}
    return ArrayCheckpoint(checkpoint.config, tensors)


def test_dimensions_come_from_the_config_and_the_tensors() -> None:
    identity = identify(random_checkpoint())
    assert dataclasses.astuple(identity)[:6] == ("llama", 4, 64, 2, 16, 320)
    assert set(identity.fingerprint) == {EMBEDDINGS, QUERY, DOWN}
    assert all(len(values) == 32 for values in identity.fingerprint.values())


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("seed", range(5))
def test_requantized_copy_is_the_same_model(seed: int, bits: int) -> None:
    checkpoint = random_checkpoint(seed)
    assert identify(checkpoint).differences(identify(copy_of(checkpoint, bits))) == []


def test_other_weights_of_the_same_shape_are_another_model() -> None:
    ours = identify(random_checkpoint(0))
    for seed in range(1, 40):
        faults = ours.differences(identify(random_checkpoint(seed)))
        assert faults, f"seed {seed} passes for seed 0"
        assert all("weights are of another model" in fault for fault in faults)


@pytest.mark.parametrize("name", [EMBEDDINGS, QUERY, DOWN])
def test_a_single_differing_tensor_is_named(name: str) -> None:
    ours, theirs = random_checkpoint(0), random_checkpoint(0)
    theirs.tensors[name] = random_checkpoint(1).tensors[name]
    (fault,) = identify(ours).differences(identify(theirs))
    assert name in fault


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_or_columns_in_another_order_are_another_model(axis: int) -> None:
    ours, theirs = random_checkpoint(0), random_checkpoint(0)
    theirs.tensors[QUERY] = np.roll(theirs.tensors[QUERY], 1, axis)
    assert identify(ours).differences(identify(theirs))


def test_all_differing_fields_are_listed_with_both_values() -> None:
    ours = identify(random_checkpoint())
    theirs = dataclasses.replace(ours, architecture="qwen2", num_layers=6, vocab_size=512)
    assert ours.differences(theirs) == [
        "architecture 'llama' against 'qwen2'",
        "num_layers 4 against 6",
        "vocab_size 320 against 512",
    ]


def test_mistral_and_llama_are_one_architecture() -> None:
    llama = identify(random_checkpoint())
    mistral = identify(random_checkpoint(model_type="mistral"))
    assert llama.differences(mistral) == mistral.differences(llama) == []


def test_fused_query_tensor_gives_the_same_fingerprint() -> None:
    split, fused = random_checkpoint(), random_checkpoint()
    keys_and_values = np.ones((64, 64), np.float32)
    query = fused.tensors.pop(QUERY)
    fused.tensors["model.layers.0.self_attn.qkv_proj.weight"] = np.vstack([query, keys_and_values])
    assert identify(fused) == identify(split)


def test_rows_are_read_in_pieces_and_in_order() -> None:
    checkpoint = random_checkpoint()
    pieces = list(row_chunks(checkpoint, DOWN, 64, 4 * 128 * 10))
    assert [len(rows) for rows in pieces] == [10] * 6 + [4]
    np.testing.assert_array_equal(np.vstack(pieces), checkpoint.tensors[DOWN])


def test_only_the_first_rows_of_the_embedding_count() -> None:
    ours = random_checkpoint()
    ours.tensors[EMBEDDINGS] = np.random.default_rng(0).normal(size=(1030, 64)).astype(np.float32)
    theirs = ArrayCheckpoint(ours.config, ours.tensors)
    theirs.tensors[EMBEDDINGS] = ours.tensors[EMBEDDINGS].copy()
    theirs.tensors[EMBEDDINGS][1024:] = 1e6
    assert identify(ours) == identify(theirs)


def test_json_round_trip_is_exact_and_small() -> None:
    identity = identify(random_checkpoint())
    text = identity.to_json()
    assert ModelIdentity.from_json(text) == identity
    assert "\n" not in text
    assert len(text) < 1200


def test_broken_json_lists_every_fault() -> None:
    with pytest.raises(ModelError, match="is not JSON"):
        ModelIdentity.from_json("{")
    with pytest.raises(ModelError, match="a JSON list, not an object"):
        ModelIdentity.from_json("[]")
    data = json.loads(identify(random_checkpoint()).to_json())
    del data["architecture"]
    data["num_layers"] = 0
    data["head_dim"] = "16"
    data["fingerprint"][QUERY] = [float("nan")] * 32
    with pytest.raises(ModelError) as caught:
        ModelIdentity.from_json(json.dumps(data))
    message = str(caught.value)
    assert "4 faults" in message
    for part in ("architecture is missing", "num_layers is 0", "head_dim is '16'", QUERY):
        assert part in message


def test_a_checkpoint_that_cannot_be_identified_lists_all_missing_parts() -> None:
    checkpoint = random_checkpoint(model_type=None)
    del checkpoint.tensors[QUERY], checkpoint.tensors[DOWN]
    with pytest.raises(ModelError) as caught:
        identify(checkpoint)
    for part in ("config: model_type is None, not a text", QUERY, DOWN):
        assert part in str(caught.value)


def test_damaged_weights_are_refused() -> None:
    checkpoint = random_checkpoint()
    checkpoint.tensors[DOWN][5, 5] = np.nan
    with pytest.raises(ModelError, match=r"down_proj.weight has values that are not finite"):
        identify(checkpoint)
