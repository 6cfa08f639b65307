"""Tests of the bonuses of guesses: their array form, their validation, and adapters with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bita.adapter import Adapter, random_adapter
from bita.bonuses import (
    BONUS_TENSOR,
    DEFAULT_BONUSES,
    MAX_MATCH,
    SIZE,
    TABLE_STEPS,
    Bonuses,
    bonus_faults,
)
from bita.errors import AdapterError
from bita.identity import ModelIdentity

IDENTITY = ModelIdentity("llama", 2, 8, 3, 4, 9, {})
OWN = replace(DEFAULT_BONUSES, mask_scale=0.5, agree_alone=2.5)


def test_an_array_holds_all_bonuses() -> None:
    array = np.arange(1, SIZE + 1, dtype=np.float32)
    bonuses = Bonuses.of(array)
    np.testing.assert_array_equal(bonuses.array(), array)
    assert bonuses.mask_scale == 1
    assert bonuses.text_beside[0] == 2
    assert bonuses.table_alone[-1] == SIZE - 1
    assert len(bonuses.text_alone) == MAX_MATCH
    assert len(bonuses.table_beside) == TABLE_STEPS
    assert Bonuses.of(DEFAULT_BONUSES.array()).array() == pytest.approx(DEFAULT_BONUSES.array())


def test_an_adapter_has_its_own_bonuses_or_the_defaults(tmp_path: Path) -> None:
    plain = random_adapter(IDENTITY)
    plain.save(tmp_path / "plain.safetensors")
    assert Adapter.load(tmp_path / "plain.safetensors").bonuses == DEFAULT_BONUSES
    own = replace(plain, bonuses=OWN)
    own.save(tmp_path / "own.safetensors")
    found = Adapter.load(tmp_path / "own.safetensors").bonuses
    np.testing.assert_array_equal(found.array(), OWN.array())
    assert b"".join(own.hash_pieces()) != b"".join(plain.hash_pieces())


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.ones(3, np.float32), f"{BONUS_TENSOR} is \\[3\\], not \\[{SIZE}\\]"),
        (np.full(SIZE, np.nan, np.float32), "numbers beyond 50"),
        (np.full(SIZE, 51, np.float32), "numbers beyond 50"),
        (np.full(SIZE, -1, np.float32), "a scale of masks that is not above 0"),
        (np.ones(SIZE, np.int32), f"tensor '{BONUS_TENSOR}' has type I32, not one of"),
    ],
)
def test_a_file_with_invalid_bonuses_is_refused(
    array: np.ndarray, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bonuses, "array", lambda _: array)
    monkeypatch.setattr("bita.adapter.bonus_faults", lambda _: [])
    adapter = replace(random_adapter(IDENTITY), bonuses=OWN)
    adapter.save(tmp_path / "broken.safetensors")
    monkeypatch.undo()
    with pytest.raises(AdapterError, match=fault):
        Adapter.load(tmp_path / "broken.safetensors")


def test_a_wrong_shape_is_a_fault() -> None:
    assert bonus_faults(DEFAULT_BONUSES.array()) == []
    assert bonus_faults(np.zeros((2, 2))) == [f"{BONUS_TENSOR} is [2, 2], not [{SIZE}]"]
