"""How an engine turns prompts into token ids: tokenizer, chat template, defaults."""

from collections.abc import Mapping, Sequence
from typing import Any

from bita.engine import GENERATION_FILE, TOKENIZER_FILE, Engine
from bita.errors import PromptError
from bita.generation import GenerationDefaults
from bita.runtime.text.chat_template import ChatTemplate
from bita.runtime.text.codec import TextCodec
from bita.runtime.text.grammar import GrammarCompiler

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]


class EngineTexts:
    """What `Session` knows of text. Raises EngineError if a file of the engine is broken."""

    def __init__(self, engine: Engine) -> None:
        self.codec = TextCodec.open(engine.path)
        self.defaults = GenerationDefaults.load(engine.file(GENERATION_FILE))
        self.template = ChatTemplate.open(engine.path, self.defaults.special_tokens)
        self.grammars = GrammarCompiler(
            engine.file(TOKENIZER_FILE), engine.manifest.vocab_size, self.defaults.eos_ids
        )

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of text (special tokens added), of messages (templated) or of token ids."""
        if isinstance(prompt, str):
            return self.codec.encode(prompt, add_special_tokens=True)
        if not isinstance(prompt, Sequence):
            raise PromptError(f"a prompt is text, messages or token ids, not {prompt!r:.60}")
        if len(prompt) == 0:
            raise PromptError("the prompt is empty; give text, messages or token ids")
        if all(type(item) is int for item in prompt):
            return list(prompt)  # type: ignore[arg-type]
        text = self.render(prompt)  # type: ignore[arg-type]
        return self.codec.encode(text, add_special_tokens=False)

    def render(self, messages: Sequence[Message]) -> str:
        """The text of messages by the model's template. Raises PromptError."""
        if self.template is None:
            raise PromptError("this engine's model has no chat template; give the prompt as text")
        return self.template.render(messages)
