"""Prompt files from anywhere: each line is read as intended, or refused with its number."""

import json
import os
from pathlib import Path

import pytest
from deadlines import stopped_if_it_hangs

from bita.data.prompts import Question, read_prompts, read_questions
from bita.errors import PromptError


def write_lines(folder: Path, *lines: str, end: str = "\n") -> Path:
    path = folder / "prompts.jsonl"
    path.write_bytes(end.join(lines).encode("utf-8", "surrogatepass"))
    return path


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_every_form_of_a_line_is_read(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, *user("Hi")]
    path = write_lines(
        tmp_path,
        *('{"prompt": "one", "category": "a"}', "", json.dumps({"messages": chat})),
        *('{"turns": ["two", "three"], "category": 7}', "  "),
    )
    assert read_questions(path) == [
        *(Question(user("one"), "a"), Question(chat, "all"), Question(user("two"), "7")),
    ]
    assert read_prompts(path, 2) == [user("one"), chat]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_a_line_ends_at_a_line_feed_only(tmp_path: Path, character: str) -> None:
    """JSON may contain the other line ends of Unicode unescaped."""
    text = f"a{character}b"
    path = write_lines(tmp_path, json.dumps({"prompt": text}, ensure_ascii=False))
    assert read_prompts(path) == [user(text)]


def test_crlf_line_ends_and_byte_order_marks_are_accepted(tmp_path: Path) -> None:
    path = write_lines(tmp_path, '\ufeff{"prompt": "a"}', '{"prompt": "b"}', end="\r\n")
    assert read_prompts(path) == [user("a"), user("b")]


FORM = r"is not of the form \{"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Expecting property name"),
        ("[" * 10**5, "line 2: it is nested too deeply"),
        ('{"a":' * 900 + "1" + "}" * 900, FORM),
        ("[1]", FORM),
        ("null", FORM),
        ("9" * 5000, "line 2: Exceeds the limit"),
        ('{"prompt": 3}', FORM),
        ('{"prompt": " "}', FORM),
        ('{"turns": [[]]}', FORM),
        ('{"messages": []}', FORM),
        ('{"messages": [1]}', "message 1 has no role and content"),
        ('{"messages": [{"role": "user"}]}', "has no role and content"),
        ('{"messages": [{"role": null, "content": "x"}]}', "the role None, not a text"),
        ('{"messages": [{"role": "user", "content": null}]}', "the content None, not a text"),
        ('{"messages": [{"role": "user", "content": ["x"]}]}', r"content \['x'\], not a text"),
        ('{"messages": [{"role": "user", "content": 5}]}', "the content 5, not a text"),
        (r'{"prompt": "\ud800"}', "line 2: a text in it holds half a surrogate pair"),
        (
            r'{"prompt": "a", "category": "\udfff"}',
            "line 2: a text in it holds half a surrogate pair",
        ),
        ("\ud800", r"byte 16 is not UTF-8"),
    ],
)
def test_invalid_lines_are_reported_by_number(tmp_path: Path, line: str, message: str) -> None:
    path = write_lines(tmp_path, '{"prompt": "a"}', line)
    with pytest.raises(PromptError, match=message) as caught:
        read_questions(path)
    assert len(str(caught.value)) < 500


def test_a_file_of_invalid_lines_gives_a_short_message(tmp_path: Path) -> None:
    path = write_lines(tmp_path, *["{" + "x" * 200] * 50_000)
    with stopped_if_it_hangs(20), pytest.raises(PromptError, match="20 faults") as caught:
        read_questions(path)
    assert len(str(caught.value)) < 3000


def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, message in (
        (tmp_path, "it is not a regular file"),
        (pipe, "it is not a regular file"),
        (Path("/dev/zero"), "it is not a regular file"),
        (tmp_path / "none", "No such file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with stopped_if_it_hangs(20), pytest.raises(PromptError, match=message):
            read_questions(path)


def test_a_category_becomes_a_short_text(tmp_path: Path) -> None:
    path = write_lines(tmp_path, json.dumps({"prompt": "a", "category": ["x" * 10**5]}))
    (question,) = read_questions(path)
    assert len(question.category) <= 60
