"""What the exporter needs of a model's files, whatever their format."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bita.generation import GenerationDefaults
from bita.tensors import TensorSource


@dataclass(frozen=True)
class TextAssets:
    """Everything that turns text into token ids and back.

    tokenizer_json: contents of a `tokenizer.json` of the tokenizers library.
    chat_template: Jinja source, or None for a model without one.
    eos_ids: token ids that end an answer, most usual first; never empty.
    special_tokens: `bos_token`, `eos_token`, ... as text, for chat templates.
    sampling: how the model's authors sample from it, by the names of SAMPLING; empty for greedy.
    turn_end_ids: more token ids that end an answer to messages.
    """

    tokenizer_json: str
    chat_template: str | None
    eos_ids: tuple[int, ...]
    special_tokens: dict[str, str] = field(default_factory=dict)
    sampling: dict[str, float] = field(default_factory=dict)
    turn_end_ids: tuple[int, ...] = ()

    @property
    def defaults(self) -> GenerationDefaults:
        """What an engine keeps of them."""
        return GenerationDefaults(
            self.eos_ids, self.special_tokens, self.sampling, self.turn_end_ids
        )


class Checkpoint(TensorSource, Protocol):
    """A model's weights and texts.

    name: how a user called the model; path: where its files are; license: SPDX id or None.
    """

    name: str
    path: Path
    license: str | None

    def text_assets(self) -> TextAssets:
        """The tokenizer and the chat template. Raises ModelError if there is no tokenizer."""
