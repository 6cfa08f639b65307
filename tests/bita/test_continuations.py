"""Tests of the table of usual continuations: counting, lookup, storage, and validation."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from make_tiny_engine import write_plain_model
from safetensors.numpy import load_file, save_file

from bita.adapter import Adapter, random_adapter
from bita.adapter_file import FORMAT
from bita.continuations import (
    SURE_BITS,
    Continuations,
    best_continuations,
    count_continuations,
)
from bita.errors import AdapterError
from bita.export.sources import open_checkpoint
from bita.identity import ModelIdentity, identify


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> ModelIdentity:
    return identify(open_checkpoint(str(write_plain_model(tmp_path_factory.mktemp("plain")))))


def table_of(*texts: list[int], num_prompt: int = 1, max_entries: int = 1000) -> Continuations:
    table = count_continuations([(text, num_prompt) for text in texts], max_entries)
    assert table is not None
    return table


def test_the_longest_known_run_decides_the_continuation() -> None:
    table = table_of(*[[1, 2, 3, 4]] * 9, *[[7, 8, 3, 5]] * 9, [9, 3, 4])
    assert table.find([1, 2, 3])[0] == 4
    assert table.find([7, 8, 3])[0] == 5
    assert table.find([8, 3])[0] == 5
    sure, unsure = table.find([7, 8, 3])[1], table.find([3])[1]
    assert sure > 85
    assert 35 < unsure < 60  # either 4 or 5 follows
    assert table.find([0, 6, 3]) == table.find([3])
    assert table.find([1]) == table.find([0, 1]) == (2, table.find([1])[1])
    assert table.find([4]) == table.find([]) == (0, 0)


def test_tokens_of_prompts_are_not_counted() -> None:
    table = table_of(*[[1, 2, 3, 4, 5]] * 5, num_prompt=4)
    assert table.find([2, 3, 4])[0] == 5
    assert table.find([1, 2, 3]) == (0, 0)


def test_confidence_rises_with_the_count() -> None:
    seen = [table_of(*[[1, 2]] * times).find([1])[1] for times in (1, 2, 5, 50)]
    assert seen == sorted(seen)
    assert seen[0] < 40
    assert seen[-1] > 95


def test_the_table_with_more_right_guesses_is_chosen() -> None:
    few = table_of(*[[1, 2, 3]] * 9)
    many = table_of(*[[1, 2, 3, 4, 5]] * 9)
    judged = [([9, 1, 2, 3, 4, 5], 1)]
    assert best_continuations((few, many), judged) is many
    assert best_continuations((many, few), judged) is many
    # the first of equal tables is chosen; tokens of the prompt do not count
    assert best_continuations((few, many), [([1, 2, 3, 4, 5, 7], 5)]) is few
    assert best_continuations((None, few), judged) is few
    assert best_continuations((None, None), judged) is None


def test_the_most_frequent_entries_are_kept() -> None:
    texts = [[number, number + 100] for number in range(1, 60) for _ in range(number)]
    table = table_of(*texts, max_entries=10)
    assert table.num_entries == 10
    assert [number for number in range(1, 60) if table.find([number])[1]] == [*range(50, 60)]
    assert count_continuations([([1, 2], 1)], 0) is None
    assert count_continuations([([1, 2], 2)], 5) is None


def test_every_entry_of_a_full_table_is_found() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 2**21 - 2, 2).tolist() for _ in range(3000)]
    table = table_of(*texts)
    texts = [*{text[0]: text for text in texts}.values()]
    known = [text for text in texts if table.find(text[:1])[1]]
    assert 990 < len(known) <= table.num_entries == 1000
    assert sum(table.find(text[:1])[0] == text[1] for text in known) > 990


def test_adapters_store_the_table(identity: ModelIdentity, tmp_path: Path) -> None:
    plain = random_adapter(identity, 2, 3, scale=0.1)
    adapter = replace(plain, continuations=table_of(*[[1, 2, 3, 4]] * 5))
    adapter.save(tmp_path / "a.safetensors")
    loaded = Adapter.load(tmp_path / "a.safetensors")
    assert loaded.continuations is not None
    assert loaded.continuations.find([2, 3])[0] == 4
    assert [*loaded.hash_pieces()] == [*adapter.hash_pieces()] != [*plain.hash_pieces()]
    plain.save(tmp_path / "plain.safetensors")
    assert Adapter.load(tmp_path / "plain.safetensors").continuations is None


def metadata_of(identity: ModelIdentity, version: str) -> str:
    stated = {"format_version": version, "identity": identity.to_json(), "num_masks": "1"}
    return json.dumps(stated | {"prefix_length": "0", "tuned_on": "x"})


@pytest.mark.parametrize("num_values", [6, 8])
def test_tables_of_the_older_format_with_keys_are_read(
    identity: ModelIdentity, tmp_path: Path, num_values: int
) -> None:
    path, keys = tmp_path / "a.safetensors", np.zeros(8, np.uint64)
    values = np.zeros(num_values, np.uint32)
    keys[1], values[1] = 8, 9 << SURE_BITS | 60  # 9 follows 7
    keys[5], values[5] = 8 << 42 | 9 << 21 | 10, 11 << SURE_BITS | 70  # 11 follows 7, 8, 9
    random_adapter(identity, 1, 0, scale=0.1).save(path)
    tables: dict[str, np.ndarray] = {"continuation_keys": keys, "continuation_values": values}
    save_file(load_file(path) | tables, path, {FORMAT: metadata_of(identity, "3")})
    if num_values < len(keys):
        with pytest.raises(AdapterError, match=r"is \[8\] and \[6\], not twice"):
            Adapter.load(path)
        return
    adapter = Adapter.load(path)
    assert adapter.continuations is not None
    assert adapter.continuations.num_entries == 2
    assert adapter.continuations.find([6, 7]) == (9, 60)
    assert adapter.continuations.find([7, 8, 9]) == (11, 70)
    adapter.save(path)
    assert load_file(path)["continuation_marks"].dtype == np.uint16


def test_unknown_runs_are_rarely_mistaken_for_known_ones() -> None:
    rng = np.random.default_rng(0)
    table = table_of(*rng.integers(0, 5000, (20_000, 4)).tolist(), max_entries=20_000)
    others = rng.integers(5000, 10_000, (20_000, 3)).tolist()
    assert sum(table.find(run) != (0, 0) for run in others) < 30  # of 60,000 lookups


@pytest.mark.parametrize(
    ("marks", "values", "message"),
    [
        (np.zeros(4, np.uint16), np.full(4, 999 << SURE_BITS, np.uint32), "holds token 999"),
        (np.zeros(4, np.uint16), np.full(4, 101, np.uint32), "101 percent"),
        (np.ones(4, np.uint16), np.ones(4, np.uint32), "has no empty slot"),
        (np.zeros(3, np.uint16), np.zeros(3, np.uint32), r"\[3\] and \[3\], not twice one power"),
        (np.zeros(4, np.uint16), np.zeros(8, np.uint32), r"\[4\] and \[8\]"),
        (np.zeros(4, np.float32), np.zeros(4, np.uint32), "has the types F32, U32"),
        (np.zeros(4, np.uint32), np.zeros(4, np.uint32), r"U32, U32, not U16 \(marks\)"),
        (None, np.zeros(4, np.uint32), "has the types U32, not U16"),
    ],
)
def test_broken_tables_are_refused(
    identity: ModelIdentity,
    tmp_path: Path,
    marks: np.ndarray | None,
    values: np.ndarray,
    message: str,
) -> None:
    path = tmp_path / "a.safetensors"
    adapter = replace(random_adapter(identity, 1, 0, scale=0.1), continuations=table_of([1, 2]))
    adapter.save(path)
    tensors = load_file(path)
    tensors["continuation_values"] = values
    if marks is None:
        del tensors["continuation_marks"]
    else:
        tensors["continuation_marks"] = marks
    save_file(tensors, path, {FORMAT: metadata_of(identity, "4")})
    with pytest.raises(AdapterError, match=message):
        Adapter.load(path)
