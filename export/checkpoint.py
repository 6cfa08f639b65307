"""The parts of a model's files that the exporter needs, independent of their format."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bita.generation import GenerationDefaults
from bita.tensors import TensorSource


@dataclass(frozen=True)
class TextAssets:
    """Everything that turns text into token ids and back."""

    tokenizer_json: str  # content of a `tokenizer.json` of the tokenizers library
    chat_template: str | None  # Jinja source, or None for a model without one
    eos_ids: tuple[int, ...]  # token ids that end an answer, most usual first; never empty
    # `bos_token`, `eos_token`, ... as text, for chat templates
    special_tokens: dict[str, str] = field(default_factory=dict)
    # the authors' sampling settings, by the names of SAMPLING; empty for greedy
    sampling: dict[str, float] = field(default_factory=dict)
    turn_end_ids: tuple[int, ...] = ()  # further token ids that end an answer to messages

    @property
    def defaults(self) -> GenerationDefaults:
        """The part of the assets that an engine stores as generation defaults."""
        return GenerationDefaults(
            self.eos_ids, self.special_tokens, self.sampling, self.turn_end_ids
        )


class Checkpoint(TensorSource, Protocol):
    """A model's weights and texts."""

    name: str  # as the user named the model
    path: Path  # of its files
    license: str | None  # an SPDX id if the license has one; None if unknown

    def text_assets(self) -> TextAssets:
        """Read the tokenizer and the chat template. Raises ModelError if there is no tokenizer."""
