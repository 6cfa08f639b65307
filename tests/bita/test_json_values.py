"""Any value from outside gives a value of the requested type, or one clear fault."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bita.errors import MAX_FAULTS, ModelError
from bita.json_values import (
    MAX_FLOAT,
    MAX_OBJECT_BYTES,
    Fields,
    parse_json,
    printable,
    read_json_object,
    shown,
)

HUGE_DIGITS = "1" + "0" * 5000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (HUGE_DIGITS, "4300 digits"),
        ("{", "line 1 column 2"),
        (r'{"a": ["\ud800"]}', "half a surrogate pair"),
        (r'{"\uDC00x": 1}', "half a surrogate pair"),
        ('["\ud800"]', "half a surrogate pair"),
    ],
)
def test_invalid_json_raises_value_error(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_whole_surrogate_pairs_are_one_character() -> None:
    assert parse_json(rb'["\ud83d\ude00", "\\ud800"]') == ["\U0001f600", "\\ud800"]


def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match="not a regular file"):
        read_json_object(tmp_path / "config.json", ModelError, "download it again")


def test_a_file_above_the_size_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{    }")
    assert read_json_object(tmp_path / "config.json", ModelError, "", 6) == {}
    with pytest.raises(ModelError, match="it has 6 bytes; at most 5 are read"):
        read_json_object(tmp_path / "config.json", ModelError, "", 5)


def test_terminal_control_characters_are_escaped() -> None:
    assert printable("é [x] \x1b]0;\x07\n\ud800") == r"é [x] \x1b]0;\x07\n\ud800"


def test_the_largest_float_is_the_largest_float32() -> None:
    assert float(np.finfo(np.float32).max) == MAX_FLOAT


@pytest.mark.parametrize("content", ["[1]", "null", '"text"', "NaN"])
def test_json_that_is_not_an_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match="not a JSON object; do this"):
        read_json_object(tmp_path / "config.json", ModelError, "do this")


@pytest.mark.parametrize(
    ("method", "value", "taken"),
    [
        ("whole", 7, 7),
        ("whole", 7.0, 7),
        ("whole", np.uint32(7), 7),
        ("number", 7, 7.0),
        ("number", np.float32(0.5), 0.5),
        ("flag", False, False),
        ("text", "", ""),
        ("wholes", [1, 2], (1, 2)),
        ("wholes", np.array([1, 2], np.uint32), (1, 2)),
        ("numbers", [], ()),
        ("texts", ["a"], ("a",)),
        ("table", {}, {}),
        ("whole_or_null", None, None),
        ("number_or_null", None, None),
        ("flag_or_null", None, None),
        ("text_or_null", None, None),
    ],
)
def test_values_of_the_requested_type_are_accepted(method: str, value: Any, taken: Any) -> None:
    fields = Fields({"key": value})
    assert getattr(fields, method)("key") == taken
    assert fields.faults == []


WRONG: dict[str, list[Any]] = {
    "whole": [None, True, 1.5, "7", float("inf"), float("nan"), 2**63, -1, [1], {}, np.ones(2)],
    "number": [None, True, "7", float("inf"), float("nan"), 1e39, 10**400, [1.0], np.ones(1)],
    "flag": [None, 0, 1, "true", []],
    "text": [None, 7, b"a", ["a"]],
    "wholes": [None, 7, [1, None], [True], "12", {"a": 1}, [[1]], [float("inf")], np.ones((2, 2))],
    "numbers": [None, [float("nan")], ["a"], 1.0, [[1.0]]],
    "texts": [None, [1], "abc", {"a": 1}],
    "table": [None, [], "a", 1],
}


@pytest.mark.parametrize(
    ("method", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_other_values_give_one_fault_that_names_the_key(method: str, value: Any) -> None:
    fields = Fields({"key": value}, "outer.")
    returned = getattr(fields, method)("key")
    assert returned is not None
    (fault,) = fields.faults
    assert fault.startswith("outer.key is ")
    assert "\n" not in fault
    assert len(fault) < 200


def test_a_missing_key_gives_the_default_or_a_fault() -> None:
    fields = Fields({})
    assert fields.whole("a", 3) == 3
    assert fields.number_or_null("b", 0.5) == 0.5
    assert fields.faults == []
    fields.text("c")
    assert fields.faults == ["c is missing, not a text"]


def test_bounds_are_checked_and_reported() -> None:
    fields = Fields({"n": 9, "x": -0.5})
    fields.whole("n", least=1, most=8)
    fields.number("x", least=0.0)
    assert fields.faults == [
        "n is 9, not a whole number of 1 to 8",
        "x is -0.5, not a number of 0 or more",
    ]


def test_inner_objects_share_the_faults() -> None:
    fields = Fields({"plan": {"rows": "1"}})
    fields.inner("plan").whole("rows")
    assert fields.faults == ["plan.rows is '1', not a whole number of 0 or more"]


def test_a_long_list_of_faults_is_shortened() -> None:
    fields = Fields(dict.fromkeys(map(str, range(1000))))
    for number in range(1000):
        fields.whole(str(number))
    with pytest.raises(ModelError) as caught:
        fields.check(ModelError, "config")
    assert len(str(caught.value).splitlines()) == MAX_FAULTS + 2
    assert "and 980 more" in str(caught.value)


def test_any_value_is_shown_on_one_short_line() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, 10**5000, "a\nb" * 100, {"k": "v" * 1000}):
        text = shown(value)
        assert len(text) <= 60
        assert "\n" not in text


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, MAX_OBJECT_BYTES + 1)
    with pytest.raises(ModelError, match=r"it has 16777217 bytes; at most 16777216 are read"):
        read_json_object(path, ModelError, "download it again")
