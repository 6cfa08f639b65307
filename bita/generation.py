"""What an engine knows about ending and templating answers: the file generation.json."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bita.errors import EngineError

# What models' authors say of sampling, by the names of `bita.runtime.options.Options`.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def sampling_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of SAMPLING that are there and are numbers; nothing without a temperature."""
    found = {name: values.get(name) for name in SAMPLING}
    numbers = {
        name: value
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    if "top_k" in numbers:
        numbers["top_k"] = int(numbers["top_k"])
    return numbers if numbers.get("temperature") else {}


@dataclass(frozen=True)
class GenerationDefaults:
    """eos_ids: token ids that end an answer. special_tokens: by name, for chat templates. sampling:
    as the model's authors recommend it; empty where they do not. turn_end_ids: more tokens that end
    an answer to messages: those with which the chat template ends a turn.
    """

    eos_ids: tuple[int, ...]
    special_tokens: dict[str, str]
    sampling: dict[str, float] = field(default_factory=dict)
    turn_end_ids: tuple[int, ...] = ()

    @property
    def chat_eos_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer to messages, ends of a turn first."""
        return tuple(dict.fromkeys((*self.turn_end_ids, *self.eos_ids)))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "GenerationDefaults":
        """Raises EngineError if the file is not what `save` writes."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            eos_ids = tuple(int(token_id) for token_id in data["eos_ids"])
            special_tokens = {str(key): str(text) for key, text in data["special_tokens"].items()}
            sampling = sampling_numbers(data.get("sampling", {}))
            turn_end_ids = tuple(int(token_id) for token_id in data.get("turn_end_ids", ()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"{path} is broken ({error!r}); rebuild the engine") from error
        return cls(eos_ids, special_tokens, sampling, turn_end_ids)
