"""Prompt files: JSON Lines in plain, chat and MT-Bench form, and the bundled files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bita.errors import MAX_FAULTS, PromptError, raise_faults
from bita.json_values import MAX_JSON_BYTES, parse_json, read_regular_file, shown

Messages = list[dict[str, str]]
Item = TypeVar("Item")
BUNDLED_PROMPTS = Path(__file__).with_name("prompts.jsonl")
CALIBRATION_PROMPTS = Path(__file__).with_name("calibration_prompts.jsonl")
TREE_PROMPTS = Path(__file__).with_name("tree_prompts.jsonl")
FORMS = '{"prompt": "..."}, {"messages": [...]} or {"turns": ["...", ...]}'


@dataclass(frozen=True)
class Question:
    """One line of a prompt file."""

    messages: Messages  # the prompt; the first of several "turns"
    category: str  # category that the line gives, or "all"


def read_prompts(path: Path | None = None, limit: int | None = None) -> list[Messages]:
    """Return the prompts of `read_questions`, without their categories."""
    return [question.messages for question in read_questions(path, limit)]


def read_questions(path: Path | None = None, limit: int | None = None) -> list[Question]:
    """Read the first `limit` questions of a prompt file, by default the bundled one.

    Lines end only at line feeds, since JSON may contain the other line ends of Unicode. Raises
    PromptError that lists the first invalid lines.
    """
    path = path or BUNDLED_PROMPTS
    questions: list[Question] = []
    faults: list[str] = []
    for number, line in enumerate(_lines(path), 1):
        if len(questions) == limit or len(faults) == MAX_FAULTS:
            break
        if line.strip():
            try:
                questions.append(_question(line))
            except ValueError as error:
                faults.append(f"line {number}: {error}")
    if not questions and not faults:
        faults.append(f"holds no prompts; give lines of the form {FORMS}")
    raise_faults(PromptError, str(path), faults)
    return questions


def _lines(path: Path) -> list[str]:
    try:
        text = read_regular_file(path, MAX_JSON_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"cannot read prompts from {path}: byte {error.start} is not UTF-8; save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise PromptError(
            f"cannot read prompts from {path}: {cause}; give a file of lines of the form {FORMS}"
        ) from error
    return text.removeprefix("\N{BYTE ORDER MARK}").split("\n")


def _question(line: str) -> Question:
    """Parse a line. Raises ValueError if it is not a question, or UTF-8 cannot encode its text."""
    entry = parse_json(line)
    messages = _messages(entry)
    category = entry.get("category") or "all"
    return Question(messages, category if isinstance(category, str) else shown(category))


def _messages(entry: Any) -> Messages:
    if isinstance(entry, Mapping):
        if isinstance(entry.get("messages"), list) and entry["messages"]:
            return [_message(message) for message in entry["messages"]]
        turns = entry.get("turns")
        text = turns[0] if isinstance(turns, list) and turns else entry.get("prompt")
        if isinstance(text, str) and text.strip():
            return [{"role": "user", "content": text}]
    raise ValueError(f"is not of the form {FORMS}")


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise ValueError(f"message {shown(message)} has no role and content")
    for name in ("role", "content"):
        if not isinstance(message[name], str):
            raise ValueError(f"a message has the {name} {shown(message[name])}, not a text")
    return {"role": message["role"], "content": message["content"]}


def evenly(items: Sequence[Item], count: int | None) -> list[Item]:
    """Return `count` items (None: all), spread evenly over the sequence."""
    count = len(items) if count is None else min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]
