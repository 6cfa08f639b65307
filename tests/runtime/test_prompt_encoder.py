"""Prompts for models with and without a chat template."""

from dataclasses import replace
from pathlib import Path

import pytest

from bita.engine import open_engine
from bita.errors import PromptError
from bita.runtime.text.prompt_encoder import PromptEncoder

MESSAGES = [
    {"role": "system", "content": "Short answers."},
    {"role": "user", "content": "Hello tree"},
]


@pytest.fixture(scope="module")
def encoder(tiny_engine: Path) -> PromptEncoder:
    return PromptEncoder.of_engine(open_engine(tiny_engine))


def test_an_encoder_can_be_made_from_files_or_their_contents(
    tiny_engine: Path, encoder: PromptEncoder
) -> None:
    source, template = (
        (tiny_engine / name).read_text(encoding="utf-8")
        for name in ("tokenizer.json", "chat_template.jinja")
    )
    other = PromptEncoder.of_sources(source, template, encoder.defaults)
    for prompt in ("Hello tree", MESSAGES, [5, 6]):
        assert other.encode(prompt) == encoder.encode(prompt)
    assert PromptEncoder.of_sources(source, None, encoder.defaults).template is None


def test_without_a_template_the_last_message_is_the_prompt(encoder: PromptEncoder) -> None:
    assert encoder.as_prompt(MESSAGES) is MESSAGES
    plain = replace(encoder, template=None)
    assert plain.as_prompt(MESSAGES) == "Hello tree"
    assert plain.encode(plain.as_prompt(MESSAGES)) == encoder.encode("Hello tree")
    with pytest.raises(PromptError, match="no chat template; give the prompt as text"):
        plain.encode(MESSAGES)
