"""Tests of generation.json, and of the recommended sampling numbers that are accepted."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bita.errors import EngineError
from bita.generation import SAMPLING, GenerationDefaults, sampling_numbers
from bita.runtime.options import Options

INFINITY, NAN = float("inf"), float("nan")
GIVEN = {
    **{"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    "repetition_penalty": 1.1,
}
HOSTILE = [INFINITY, -INFINITY, NAN, -1, 1e300, 10**400, "0.5", "", [], {}, True, [0.5]]


def test_valid_numbers_are_accepted_unchanged() -> None:
    assert sampling_numbers(GIVEN) == GIVEN
    assert sampling_numbers({**GIVEN, "top_k": 20.0, "other": 1})["top_k"] == 20


@pytest.mark.parametrize("value", [*HOSTILE, 2.5, None], ids=lambda value: str(value)[:8])
@pytest.mark.parametrize("name", SAMPLING)
def test_invalid_recommendations_are_left_out(name: str, value: Any) -> None:
    numbers = sampling_numbers({**GIVEN, name: value})
    Options.of(**numbers)  # raises where a number is invalid
    if name not in numbers:
        kept = {} if name == "temperature" else {k: v for k, v in GIVEN.items() if k != name}
        assert numbers == kept
    else:
        assert numbers == {**GIVEN, name: value}


def test_recommendations_that_mean_greedy_are_left_out() -> None:
    assert sampling_numbers({**GIVEN, "temperature": 0}) == {}
    assert sampling_numbers({**GIVEN, "top_p": 0}) == {}
    assert sampling_numbers({"top_k": 5}) == {}


def write(path: Path, **changes: Any) -> Path:
    content = {"eos_ids": [1], "special_tokens": {"eos_token": "<|end|>"}, "sampling": GIVEN}
    path.write_text(json.dumps({**content, **changes}))
    return path


def test_load_returns_the_saved_defaults(tmp_path: Path) -> None:
    defaults = GenerationDefaults((1, 2), {"eos_token": "<|end|>"}, GIVEN)
    defaults.save(tmp_path / "generation.json")
    assert GenerationDefaults.load(tmp_path / "generation.json") == defaults


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos_ids": [INFINITY]}, r"eos_ids is \[inf\]"),
        ({"eos_ids": [-1]}, r"eos_ids is \[-1\]"),
        ({"eos_ids": "1"}, "eos_ids is '1'"),
        ({"eos_ids": None}, "eos_ids is None"),
        ({"special_tokens": []}, r"special_tokens is \[\]"),
        ({"special_tokens": {"eos_token": 1}}, "special_tokens.eos_token is 1, not a text"),
        ({"sampling": [1]}, r"sampling is \[1\]"),
        ({"sampling": {"temperature": NAN}}, r"sampling\.temperature is nan"),
        ({"sampling": {"temperature": 1.0, "top_k": 2.5}}, r"sampling\.top_k is 2\.5"),
        ({"sampling": {"temperature": 1.0, "top_p": 2}}, r"sampling\.top_p is 2"),
        ({"sampling": {"heat": 1.0}}, r"sampling\.heat is not one of temperature"),
    ],
)
def test_a_broken_file_is_refused_with_its_value(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        GenerationDefaults.load(write(tmp_path / "generation.json", **changes))


def test_files_without_a_json_object_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "generation.json"
    for content in ("[" * 100_000, "[]", "{", ""):
        path.write_text(content)
        with pytest.raises(EngineError, match=r"generation\.json.*rebuild the engine"):
            GenerationDefaults.load(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(EngineError, match="not a regular file"):
        GenerationDefaults.load(path)
