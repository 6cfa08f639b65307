"""Encoding of prompts with a model's tokenizer, chat template and generation defaults."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bita.engine import GENERATION_FILE, TOKENIZER_FILE, Engine
from bita.errors import EngineError, PromptError, raise_faults
from bita.generation import GenerationDefaults
from bita.json_values import shown
from bita.runtime.text.chat_template import ChatTemplate
from bita.runtime.text.codec import TextCodec
from bita.runtime.text.messages import checked_messages, text_of
from bita.runtime.text.template_meter import TemplateLimits

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]


MAX_SMALL_BYTES = 4 << 20  # of a tokenizer.json that needs little memory while it is read


@dataclass(frozen=True, eq=False)
class PromptEncoder:
    """Encodes prompts for one model."""

    codec: TextCodec
    template: ChatTemplate | None  # None for a model without chat
    defaults: GenerationDefaults  # EOS tokens and sampling options

    @classmethod
    def of_engine(cls, engine: Engine) -> "PromptEncoder":
        """Read the files of an engine. Raises EngineError if one is broken."""
        codec = TextCodec.open(engine.path, engine.manifest.vocab_size)
        defaults = GenerationDefaults.load(engine.file(GENERATION_FILE))
        _check_eos_ids(engine, defaults.eos_ids)
        return cls(codec, ChatTemplate.open(engine.path, defaults.special_tokens), defaults)

    @classmethod
    def of_sources(
        cls,
        tokenizer_json: str,
        chat_template: str | None,
        defaults: GenerationDefaults,
        num_rows: int | None = None,
    ) -> "PromptEncoder":
        """Create an encoder from the contents of a model's files.

        Args:
            tokenizer_json: Text of tokenizer.json.
            chat_template: Source of the template; None for a model without chat.
            defaults: EOS tokens and sampling options.
            num_rows: Rows of the model's embedding table; None if unknown.

        Raises:
            EngineError: If the tokenizer cannot be used.
            PromptError: If the template cannot be used.
        """
        codec = TextCodec.of_json(tokenizer_json, num_rows=num_rows)
        template = None
        if chat_template is not None:
            template = ChatTemplate(chat_template, defaults.special_tokens)
        return cls(codec, template, defaults)

    def encode(self, prompt: Prompt) -> list[int]:
        """Encode text (adding special tokens), messages (by the template), or token ids."""
        if isinstance(prompt, str):
            return self.codec.encode(prompt, add_special_tokens=True)
        if not isinstance(prompt, Sequence):
            raise PromptError(f"a prompt is text, messages or token ids, not {shown(prompt)}")
        if len(prompt) == 0:
            raise PromptError("the prompt is empty; give text, messages or token ids")
        if all(type(item) is int for item in prompt):
            return list(prompt)  # type: ignore[arg-type]
        text = self.render(prompt)  # type: ignore[arg-type]
        return self.codec.encode(text, add_special_tokens=False)

    def eos_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the tokens that end an answer; for messages also those that end a turn."""
        is_chat = not isinstance(prompt, str) and isinstance(prompt[0], Mapping)
        return self.defaults.chat_eos_ids if is_chat else self.defaults.eos_ids

    def render(self, messages: Sequence[Message]) -> str:
        """Render messages with the model's template. Raises PromptError."""
        if self.template is None:
            raise PromptError("this engine's model has no chat template; give the prompt as text")
        return self.template.render(messages)

    def as_prompt(self, messages: Sequence[Message]) -> Prompt:
        """Return the messages, or the text of the last one for a model without chat."""
        if self.template is not None:
            return messages
        return text_of(checked_messages(messages, TemplateLimits().messages)[-1].get("content"))


def has_large_tokenizer(engine: Engine) -> bool:
    """Return whether reading the tokenizer needs much memory: 336 MB for a file of 14 MB.

    Weights are then better read after it.
    """
    return engine.file(TOKENIZER_FILE).stat().st_size > MAX_SMALL_BYTES


def _check_eos_ids(engine: Engine, eos_ids: Sequence[int]) -> None:
    size = engine.manifest.vocab_size
    faults = [
        f"eos id {token} is not in [0, {size}), the model's vocabulary"
        for token in eos_ids
        if not 0 <= token < size
    ]
    raise_faults(EngineError, f"{engine.file(GENERATION_FILE)}; rebuild the engine", faults)
