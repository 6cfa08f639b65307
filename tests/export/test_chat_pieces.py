"""Frozen chat templates render exactly like the template, or are not frozen at all."""

import hashlib
import json
import random
from functools import cache
from itertools import count, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chat_templates import OTHERS, PARTLY, PIECES, SPECIAL_TOKENS
from conversations import random_conversation
from engine_edits import copy_engine
from make_tiny_engine import write_plain_model
from speed import slow_but, thorough_but

from bita.cli.main import main
from bita.engine import CHAT_PIECES_FILE, TEMPLATE_FILE, Engine, open_engine, revise_engine
from bita.errors import PromptError
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.chat_pieces import Unfrozen, freeze, pieces_file
from bita.export.chat_pieces_form import SPACES, ChatPieces, UncoveredError
from bita.export.sources import open_checkpoint
from bita.runtime.text import template_meter, template_sandbox
from bita.runtime.text.chat_template import ChatTemplate
from bita.runtime.text.prompt_encoder import PromptEncoder

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Yes."}
SYSTEM = {"role": "system", "content": "Be brief."}
DATED = OTHERS["the date"][0]
MANY = 300  # conversations of each template


@cache
def pieces_of(name: str) -> ChatPieces:
    found = freeze(PIECES[name], SPECIAL_TOKENS)
    assert isinstance(found, ChatPieces), found
    return found


@cache
def template_of(name: str) -> ChatTemplate:
    return ChatTemplate(PIECES[name], SPECIAL_TOKENS)


def render_or_none(template: ChatTemplate, messages: Any, prompt: bool) -> str | None:
    """Return the template's text, or None if it refuses the messages."""
    try:
        return template.render(messages, prompt)
    except PromptError:
        return None


def is_covered(name: str, messages: Any, prompt: bool) -> bool:
    """Return whether the pieces cover a conversation; if so, they must agree with the template."""
    try:
        found: str | None = pieces_of(name).render(messages, prompt)
    except UncoveredError:
        return False
    except PromptError:
        found = None
    assert found == render_or_none(template_of(name), messages, prompt), messages
    return True


@pytest.mark.parametrize("name", thorough_but(PIECES, "llama 3", "gemma 3"))
def test_random_conversations_are_rendered_as_the_template_does(name: str) -> None:
    rng = random.Random(7)
    num_covered = 0
    for _ in range(MANY):
        messages = random_conversation(rng, PIECES[name])
        num_covered += is_covered(name, messages, rng.random() < 0.5)
    assert num_covered > MANY // 3


@pytest.mark.parametrize("name", slow_but(PIECES, "llama 3", "gemma 3"))
def test_plain_conversations_are_covered(name: str) -> None:
    """A plain conversation is at most one system message and then turns."""
    for turns in ([USER], [USER, ANSWER, USER], [USER, ANSWER] * 9 + [USER]):
        for messages in (turns, [SYSTEM, *turns]):
            assert is_covered(name, messages, True)
            assert is_covered(name, messages, False)


@pytest.mark.parametrize("name", thorough_but(PIECES, "llama 3", "gemma 3"))
def test_usual_sequences_of_roles_are_covered(name: str) -> None:
    roles = ("system", "user", "assistant", "tool")
    for length in (1, 2, 3):
        for sequence in product(roles, repeat=length):
            messages = [{"role": role, "content": f" It's {role}.\n"} for role in sequence]
            covered = is_covered(name, messages, True)
            is_usual = "tool" not in sequence and "system" not in sequence[1:]
            if is_usual and messages[-1]["role"] == "user":
                assert covered, sequence


def test_developer_is_system_unless_the_template_knows_developer() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, USER]
    assert is_covered("chatml", messages, True)
    known = freeze("{# developer #}" + PIECES["chatml"], SPECIAL_TOKENS)
    assert isinstance(known, ChatPieces)
    assert known.render([USER], True) == pieces_of("chatml").render([USER], True)
    with pytest.raises(UncoveredError, match="'developer' is not covered; render the prompt else"):
        known.render(messages, True)


def test_refusals_equal_those_of_the_template() -> None:
    for name, messages in (("gemma 2", [SYSTEM, USER]), ("gemma 3", [USER, USER])):
        with pytest.raises(PromptError) as wanted:
            template_of(name).render(messages)
        with pytest.raises(PromptError) as found:
            pieces_of(name).render(messages, True)
        assert str(found.value) == str(wanted.value)


def test_the_system_message_moves_to_the_last_question() -> None:
    messages = [SYSTEM, USER, ANSWER, {"role": "user", "content": "Why?"}]
    assert pieces_of("mistral, last").render(messages, True) == (
        "<s>[INST] Hi[/INST] Yes.</s>[INST] Be brief.\n\nWhy?[/INST]"
    )


@pytest.mark.slow
def test_a_moved_system_message_is_stripped() -> None:
    name = "mistral, last"
    source = PIECES[name].replace('system_message + "', 'system_message | trim + "')
    found = freeze(source, SPECIAL_TOKENS)
    assert isinstance(found, ChatPieces)
    messages = [{"role": "system", "content": " Be brief.\n"}, USER, ANSWER, USER]
    assert found.render(messages, True) == ChatTemplate(source, SPECIAL_TOKENS).render(messages)
    assert "[INST] Be brief.\n\nHi" in found.render(messages, True)


def test_prompts_without_a_date_are_covered() -> None:
    dated = "{% if messages[0].role != 'system' %}{{ strftime_now('%Y') }}{% endif %}"
    found = freeze(dated + PIECES["chatml"], {})
    assert isinstance(found, ChatPieces)
    assert found.covers == "all conversations, where the prompt has no date"
    messages = [SYSTEM, USER]
    assert found.render(messages, True) == pieces_of("chatml").render(messages, True)
    with pytest.raises(UncoveredError, match="writes the current date into this prompt; render"):
        found.render([USER], True)


def test_a_conditional_date_is_detected() -> None:
    """A template that tests for a clock is given a real one in the last check."""
    dated = "{% if strftime_now is callable %}{{ strftime_now('%Y') }}{% endif %}"
    found = freeze(dated + PIECES["chatml"], {})
    assert isinstance(found, Unfrozen)


def test_thoughts_are_cut_from_earlier_answers_only() -> None:
    answer = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}
    text = pieces_of("qwen 3").render([USER, answer, USER], True)
    assert "<|im_start|>assistant\nYes.<|im_end|>" in text
    with pytest.raises(UncoveredError, match="a message with '</think>' is not covered"):
        pieces_of("qwen 3").render([USER, answer], True)


def test_user_messages_that_look_like_tool_responses_are_not_covered() -> None:
    written = {"role": "user", "content": "<tool_response>3</tool_response>"}
    assert not is_covered("qwen 3", [USER, written, ANSWER], True)
    assert is_covered("qwen 3", [USER, {"role": "user", "content": "<tool>3</tool>"}], True)


@pytest.mark.parametrize("name", OTHERS)
def test_other_templates_are_not_frozen(name: str) -> None:
    source, reason = OTHERS[name]
    assert reason in json.loads(pieces_file(source, SPECIAL_TOKENS))["reason"]


@pytest.mark.parametrize("name", PARTLY)
def test_some_templates_are_frozen_for_a_single_question(name: str) -> None:
    found = freeze(PARTLY[name], SPECIAL_TOKENS)
    assert isinstance(found, ChatPieces)
    template = ChatTemplate(PARTLY[name], SPECIAL_TOKENS)
    for messages in ([USER], [SYSTEM, USER]):
        assert found.render(messages, True) == template.render(messages, True)
    with pytest.raises(
        UncoveredError, match="are for one question, with or without a system message; rend"
    ):
        found.render([USER, ANSWER, USER], True)


def test_later_system_messages_may_be_uncovered() -> None:
    assert is_covered("deepseek r1", [SYSTEM, USER, ANSWER, USER], True)
    assert not is_covered("deepseek r1", [USER, SYSTEM], True)


def test_content_that_changes_the_prompt_is_not_covered() -> None:
    source = PIECES["chatml"] + "{% if '/quiet' in messages[0].content %}<quiet>{% endif %}"
    found = freeze(source, {})
    assert isinstance(found, ChatPieces)
    template = ChatTemplate(source)
    assert found.render([USER, SYSTEM], True) == template.render([USER, SYSTEM], True)
    for content in ("/quiet", "Be /quiet!"):
        with pytest.raises(UncoveredError, match="with '/quiet' is not covered"):
            found.render([{"role": "user", "content": content}], True)


def test_the_file_has_the_hash_of_its_template() -> None:
    for source in (PIECES["chatml"], "{% for %}"):
        file = json.loads(pieces_file(source, {}))
        assert file["format"] == 1
        assert file["template_sha256"] == hashlib.sha256(source.encode()).hexdigest()
    assert pieces_file(PIECES["chatml"], {}) == pieces_file(PIECES["chatml"], {})


def test_white_space_equals_what_python_strips() -> None:
    assert len(SPACES) == 29
    assert [chr(code) for code in range(0x110000) if not chr(code).strip()] == list(SPACES)


def test_a_template_with_endless_loops_is_not_frozen() -> None:
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    found = freeze(loop + PIECES["chatml"], {})
    assert isinstance(found, Unfrozen)
    assert "takes more than 200000 steps" in found.reason


@pytest.mark.slow
def test_the_limits_are_the_same_on_slow_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """All renderings together are limited by their number of steps, not by time."""
    loop = "{% for i in range(9999) %}{% endfor %}"
    found = freeze(loop + PIECES["chatml"], {})
    assert isinstance(found, Unfrozen)
    assert found.reason == "finding its pieces takes too many steps"
    looks = count()
    slow = SimpleNamespace(monotonic=lambda: next(looks) * 0.003)  # seconds
    monkeypatch.setattr(template_meter, "time", slow)
    monkeypatch.setattr(template_sandbox, "time", slow)
    assert isinstance(freeze(PIECES["chatml"], {}), ChatPieces)
    assert next(looks) * 0.003 > 500


# --- in engines ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    place = tmp_path_factory.mktemp("pieces")
    checkpoint = open_checkpoint(str(write_plain_model(place / "model")))
    build_engine(check_build(checkpoint, None, place / "engine", BuildOptions("fp32")))
    return open_engine(place / "engine")


def card(engine: Engine, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the output of `bita inspect` for an engine as one line."""
    status = main(["inspect", str(engine.path)])
    captured = capsys.readouterr()
    text = captured.out if status == 0 else captured.err
    return " ".join(text.replace("│", " ").split())


def test_a_build_writes_the_pieces(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    source = engine.file(TEMPLATE_FILE).read_text(encoding="utf-8")
    pieces = json.loads(engine.file(CHAT_PIECES_FILE).read_text(encoding="utf-8"))
    assert pieces["template_sha256"] == engine.files[TEMPLATE_FILE]["sha256"]
    tokens = PromptEncoder.of_engine(engine).defaults.special_tokens
    assert engine.file(CHAT_PIECES_FILE).read_text(encoding="utf-8") == pieces_file(source, tokens)
    assert "in Python; in C++: all conversations" in card(engine, capsys)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({CHAT_PIECES_FILE: pieces_file("{% for %}", {})}, "the template was edited; rebuild"),
        ({TEMPLATE_FILE: PIECES["chatml"]}, "the template was edited; rebuild the engine for"),
        (
            {TEMPLATE_FILE: DATED, CHAT_PIECES_FILE: pieces_file(DATED, {})},
            "cannot write the prompts, since it writes the current date",
        ),
        ({CHAT_PIECES_FILE: "{"}, "chat_pieces.json is not readable JSON"),
        ({CHAT_PIECES_FILE: '{"reason": 3}'}, "3 faults: template_sha256 is missing"),
    ],
)
def test_the_card_reports_where_messages_are_supported(
    engine: Engine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, str],
    expected: str,
) -> None:
    changed = open_engine(copy_engine(engine.path, tmp_path / "engine"))
    assert expected in card(revise_engine(changed, files), capsys)


def test_the_card_of_an_older_engine_suggests_a_rebuild(
    tiny_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "in Python only; rebuild the engine for those in C++" in card(
        open_engine(tiny_engine), capsys
    )
