"""Prompt files: JSONL in plain, chat and MT-Bench form, and the set that comes with bita-edge."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bita.errors import PromptError, raise_faults

Messages = list[dict[str, str]]
Item = TypeVar("Item")
BUNDLED_PROMPTS = Path(__file__).with_name("prompts.jsonl")
CALIBRATION_PROMPTS = Path(__file__).with_name("calibration_prompts.jsonl")
TREE_PROMPTS = Path(__file__).with_name("tree_prompts.jsonl")
FORMS = '{"prompt": "..."}, {"messages": [...]} or {"turns": ["...", ...]}'


@dataclass(frozen=True)
class Question:
    """One line of a prompt file."""

    messages: Messages  # the prompt; of several turns the first
    category: str  # what the line names; "all" where it names none


def read_prompts(path: Path | None = None, limit: int | None = None) -> list[Messages]:
    """The prompts that `read_questions` gives, without their categories."""
    return [question.messages for question in read_questions(path, limit)]


def read_questions(path: Path | None = None, limit: int | None = None) -> list[Question]:
    """The first `limit` questions of a prompt file (None: our own set).

    Raises PromptError that lists every bad line.
    """
    path = path or BUNDLED_PROMPTS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read prompts from {path}: {error}") from error
    questions: list[Question] = []
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        if line.strip() and (limit is None or len(questions) < limit):
            try:
                questions.append(_question(json.loads(line)))
            except (ValueError, TypeError) as error:
                faults.append(f"line {number}: {error}")
    if not questions and not faults:
        faults.append(f"holds no prompts; give lines of the form {FORMS}")
    raise_faults(PromptError, str(path), faults[:20])
    return questions


def _question(entry: Any) -> Question:
    messages = _messages(entry)
    return Question(messages, str(entry.get("category") or "all"))


def _messages(entry: Any) -> Messages:
    if isinstance(entry, Mapping):
        if isinstance(entry.get("messages"), list):
            return [_message(message) for message in entry["messages"]]
        turns = entry.get("turns")
        text = turns[0] if isinstance(turns, list) and turns else entry.get("prompt")
        if isinstance(text, str) and text.strip():
            return [{"role": "user", "content": text}]
    raise ValueError(f"is not of the form {FORMS}")


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise ValueError(f"message {message!r:.60} has no role and content")
    return {"role": str(message["role"]), "content": str(message["content"])}


def evenly(items: Sequence[Item], count: int | None) -> list[Item]:
    """So many of them (None: all), spread over the whole."""
    count = len(items) if count is None else min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]
