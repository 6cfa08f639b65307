"""Checks of the values that a step takes and returns."""

import numpy as np
import pytest

from bita.errors import EngineError
from bita.runtime.backends.step_values import IdCheck

VOCAB = 320


@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize("wrong", [-1, VOCAB, -(2**63), 2**63 - 1])
def test_ids_outside_the_vocabulary_are_an_error(rows: int, wrong: int) -> None:
    """They are found in any cell of the buffer, whatever earlier steps returned."""
    ids = np.zeros((rows, 7), np.int64)
    check = IdCheck(ids, VOCAB)
    rng = np.random.default_rng(rows)
    for _ in range(5):
        ids[:] = rng.integers(0, VOCAB, ids.shape)
        ids[0, 0] = VOCAB - 1
        check.check()
        ids.flat[rng.integers(ids.size)] = wrong
        with pytest.raises(EngineError, match=rf"token id {wrong}, not one in \[0, {VOCAB}\)"):
            check.check()
