"""Defaults for ending, templating and sampling answers: the file generation.json of an engine."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bita.errors import EngineError
from bita.json_values import Fields, read_json_object, shown

# Sampling options that models' authors recommend, as named in `bita.runtime.options.Options`.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
MIN_POSITIVE = 1e-6  # lower bound of numbers that must be above 0
MAX_TOKEN_ID = 2**31 - 1


def sampling_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the valid numbers among SAMPLING; empty without a temperature.

    Values that are not finite numbers, or outside the range that transformers accepts, are left
    out. A temperature of 0, or a top_p of 0, which keeps only the best token, means greedy
    decoding, for which the result is empty.
    """
    fields = Fields(values)
    numbers: dict[str, float] = {}
    for name in SAMPLING:
        value = _number(fields, name) if values.get(name) is not None else None
        if value is not None:
            numbers[name] = value
    is_greedy = not numbers.get("temperature") or numbers.get("top_p") == 0
    return {} if is_greedy else numbers


def _number(fields: Fields, name: str) -> float | None:
    """Return the value of one of SAMPLING; None, and a fault in `fields`, if it is not valid."""
    before = len(fields.faults)
    value: float
    if name == "top_k":
        value = fields.whole(name, most=MAX_TOKEN_ID)
    elif name in ("top_p", "min_p"):
        value = fields.number(name, least=0.0, most=1.0)
    elif name == "temperature" and fields.values[name] == 0:
        value = 0.0
    else:
        value = fields.number(name, least=MIN_POSITIVE)
    return value if len(fields.faults) == before else None


@dataclass(frozen=True)
class GenerationDefaults:
    """Content of generation.json."""

    eos_ids: tuple[int, ...]  # token ids that end an answer
    special_tokens: dict[str, str]  # texts by name, for chat templates
    sampling: dict[str, float] = field(default_factory=dict)  # the authors' advice; empty for none
    turn_end_ids: tuple[int, ...] = ()  # tokens by which the chat template ends a turn

    @property
    def chat_eos_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer to messages, `turn_end_ids` first."""
        return tuple(dict.fromkeys((*self.turn_end_ids, *self.eos_ids)))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "GenerationDefaults":
        """Read a file that `save` wrote. Raises EngineError that lists every invalid value."""
        fields = Fields(read_json_object(path, EngineError, "rebuild the engine"))
        eos_ids = fields.wholes("eos_ids", most=MAX_TOKEN_ID)
        special_tokens = fields.table("special_tokens")
        fields.faults += [
            f"special_tokens.{name} is {shown(text)}, not a text"
            for name, text in special_tokens.items()
            if not isinstance(text, str)
        ]
        sampling = fields.inner("sampling", {})
        numbers = {}
        for name in sampling.values:
            if name not in SAMPLING:
                fields.faults.append(f"sampling.{name} is not one of {', '.join(SAMPLING)}")
            else:
                numbers[name] = _number(sampling, name)
        turn_end_ids = fields.wholes("turn_end_ids", (), most=MAX_TOKEN_ID)
        fields.check(EngineError, f"{path} is broken; rebuild the engine")
        return cls(eos_ids, special_tokens, sampling_numbers(numbers), turn_end_ids)
