"""The store gives back the rows it was given, shares beginnings, and stays within its bound."""

import random

import numpy as np
import pytest

from bita.runtime.decoding.page_store import PAGE_TOKENS, PageStore, common_length

SHAPE = (4, 2, 3)  # layers and sides, heads, width
ROW_BYTES = 4 * 4 * 2 * 3


def rows_of(ids: list[int]) -> np.ndarray:
    """Rows [2L, H, n, D] that say which tokens they are of, and all before them."""
    numbers = [hash(tuple(ids[: end + 1])) % 10_007 for end in range(len(ids))]
    return np.broadcast_to(
        np.array(numbers, np.float32)[None, None, :, None], (*SHAPE[:2], len(ids), SHAPE[2])
    ).copy()


def save(store: PageStore, ids: list[int]) -> list[tuple[int, int]]:
    read: list[tuple[int, int]] = []

    def reader(start: int, stop: int) -> np.ndarray:
        read.append((start, stop))
        return rows_of(ids)[:, :, start:stop].copy()

    store.save(ids, reader)
    return read


def found(store: PageStore, ids: list[int]) -> int:
    pieces = store.match(ids)
    length = sum(piece.shape[2] for piece in pieces)
    if pieces:
        np.testing.assert_array_equal(np.concatenate(pieces, axis=2), rows_of(ids[:length]))
    assert store.match_length(ids) == length
    return length


def test_a_text_that_grows_is_read_from_where_it_grew() -> None:
    store = PageStore(1 << 20)
    ids = list(range(200))
    assert save(store, ids[:70]) == [(0, 32), (32, 64), (64, 70)]
    assert save(store, ids[:70]) == []
    assert save(store, ids[:66]) == []
    assert save(store, ids[:100]) == [(64, 96), (96, 100)]
    assert store.num_bytes == 100 * ROW_BYTES  # the page of 64 to 70 has gone
    assert found(store, ids) == 100
    assert found(store, [*ids[:50], 7, 8]) == 50
    assert found(store, [*ids[:64], 999]) == 64
    assert found(store, [999]) == 0
    assert found(store, []) == 0
    assert save(store, [*ids[:64], 7, 8, 9]) == [(64, 67)]
    assert found(store, [*ids[:64], 7, 8, 9, 10]) == 67
    store.clear()
    assert (store.num_bytes, found(store, ids)) == (0, 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("max_tokens", [0, 40, 200, 600])
def test_whatever_is_saved_and_asked_for(seed: int, max_tokens: int) -> None:
    """Random texts that share beginnings: rows are right, the bound holds, the newest is there."""
    rng = random.Random(seed)
    store = PageStore(max_tokens * ROW_BYTES)
    texts: list[list[int]] = [[]]
    for _ in range(150):
        base = rng.choice(texts)
        ids = [
            *base[: rng.randint(0, len(base))],
            *(rng.randrange(3) for _ in range(rng.randint(1, 80))),
        ]
        texts.append(ids)
        save(store, ids)
        assert store.num_bytes <= store.max_bytes
        length = found(store, ids)
        assert length >= min(len(ids), max(0, max_tokens - PAGE_TOKENS))
        found(store, rng.choice(texts))
    pages = [*store._used]
    assert store.num_bytes == sum(page.rows.nbytes for page in pages if page.rows is not None)
    for page in pages:
        assert page.parent is not None
        assert page.parent.children[page.tokens] is page


def test_what_is_used_least_goes_first() -> None:
    store = PageStore(3 * 64 * ROW_BYTES)
    texts = [[number, *range(63)] for number in range(3)]
    for text in texts:
        save(store, text)
    found(store, texts[0])
    save(store, [9, *range(63)])
    assert [found(store, text) for text in texts] == [64, 0, 64]


def test_common_length() -> None:
    assert common_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_length([1, 2], [1, 2, 4]) == 2
    assert common_length([], [1]) == 0
    assert common_length((5,), [6]) == 0
