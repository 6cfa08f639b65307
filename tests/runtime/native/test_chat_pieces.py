"""The C++ library renders a chat template's pieces as Python renders the whole template."""

import json
import random
import subprocess
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from chat_templates import OTHERS, PIECES, SPECIAL_TOKENS
from conversations import random_conversation
from cpp_programs import cpp_program
from speed import thorough_but

from bita.errors import PromptError
from bita.export.chat_pieces import pieces_file
from bita.runtime.text.chat_template import ChatTemplate

USER = {"role": "user", "content": "Hi"}
MANY = 300  # conversations for each template


@cache
def pieces_of(name: str) -> dict[str, Any]:
    source = PIECES[name] if name in PIECES else OTHERS[name][0]
    pieces: dict[str, Any] = json.loads(pieces_file(source, SPECIAL_TOKENS))
    return pieces


def ask(lines: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the program's answers."""
    asked = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run(
        [cpp_program("chat_tool")], input=asked, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.split("\n")[:-1]]


def answer(pieces: dict[str, Any], messages: Any, prompt: bool = True) -> dict[str, str]:
    (found,) = ask([{"pieces": pieces, "messages": messages, "add_generation_prompt": prompt}])
    return found


@pytest.mark.parametrize("name", thorough_but(PIECES, "chatml", "llama 3", "mistral, last"))
def test_conversations_render_as_in_python(name: str) -> None:
    rng = random.Random(11)
    template = ChatTemplate(PIECES[name], SPECIAL_TOKENS)
    conversations = [random_conversation(rng, PIECES[name]) for _ in range(MANY)]
    lines: list[dict[str, Any]] = [
        {"messages": messages, "add_generation_prompt": prompt}
        for messages in conversations
        for prompt in (True, False)
    ]
    num_texts = 0
    for line, found in zip(
        lines, ask([{**lines[0], "pieces": pieces_of(name)}, *lines])[1:], strict=True
    ):
        try:
            wanted = template.render(line["messages"], line["add_generation_prompt"])
        except PromptError:
            assert "error" in found, line
            continue
        if "is not covered" not in found.get("error", ""):
            assert found == {"text": wanted}, line
            num_texts += 1
    assert num_texts > MANY // 2


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [USER] * 2049,
        [{"role": "bot", "content": ""}],
        [USER, {"role": "it's", "content": ""}, {"role": "a\nb", "content": ""}],
    ],
)
def test_invalid_messages_get_the_same_error_as_in_python(messages: Any) -> None:
    with pytest.raises(PromptError) as wanted:
        ChatTemplate(PIECES["chatml"]).render(messages)
    assert answer(pieces_of("chatml"), messages) == {"error": str(wanted.value)}


@pytest.mark.parametrize("name", ["gemma 2", "mistral, first", "llama 2"])
def test_a_template_raises_the_same_error_as_in_python(name: str) -> None:
    for messages in ([USER, USER], [{"role": "assistant", "content": "Yes."}]):
        with pytest.raises(PromptError) as wanted:
            ChatTemplate(PIECES[name], SPECIAL_TOKENS).render(messages)
        assert answer(pieces_of(name), messages) == {"error": str(wanted.value)}


def test_whitespace_is_stripped_as_in_python() -> None:
    template = ChatTemplate(PIECES["llama 3"], SPECIAL_TOKENS)
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    some = [c for c in characters if not c.strip() or ord(c) < 0x3100 or ord(c) % 977 == 0]
    lines: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": f"{c}a{c}{c}"}], "add_generation_prompt": False}
        for c in some
    ]
    found = ask([{**lines[0], "pieces": pieces_of("llama 3")}, *lines])[1:]
    for line, each in zip(lines, found, strict=True):
        assert each == {"text": template.render(line["messages"], False)}


@pytest.mark.parametrize("name", OTHERS)
def test_a_template_without_pieces_gives_the_reason(name: str) -> None:
    error = answer(pieces_of(name), [USER])["error"]
    assert OTHERS[name][1] in error
    assert error.endswith("; render the prompt elsewhere and give it as text")


def test_a_prompt_that_is_too_long_is_refused() -> None:
    found = answer(pieces_of("chatml"), [{"role": "user", "content": "é" * 1_999_900}])
    assert found["text"].count("é") == 1_999_900
    found = answer(pieces_of("chatml"), [{"role": "user", "content": "é" * 2_000_000}])
    assert "the chat template makes a prompt of over 2000000 characters" in found["error"]
