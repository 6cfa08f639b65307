"""The chat template of a Hugging Face model directory, looked up in the order of transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bita.errors import ModelError
from bita.export.huggingface.special_tokens import FIX, optional_json
from bita.json_values import read_regular_file, shown

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_DIR = "additional_chat_templates"  # further templates by name
PROCESSOR_FILE = "chat_template.json"  # older, of models that also read images
DEFAULT = "default"
MAX_BYTES = 4 << 20


def read_chat_template(directory: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """Return the Jinja source of the default template; None if it is missing or empty.

    Template files take precedence over tokenizer_config.json; chat_template.json comes last.

    Raises:
        ModelError: if a file is malformed, or no template is the default.
    """
    files = [*sorted((directory / TEMPLATE_DIR).glob("*.jinja"))]
    named = {path.stem: _text(path) for path in files}
    if (directory / TEMPLATE_FILE).exists():
        named[DEFAULT] = _text(directory / TEMPLATE_FILE)
    given: Any = named or tokenizer_config.get("chat_template")
    subject = f"{directory}/{TEMPLATE_DIR if named else 'tokenizer_config.json'}"
    if given is None:
        given = optional_json(directory / PROCESSOR_FILE).get("chat_template")
        subject = f"{directory}/{PROCESSOR_FILE}"
    template = _default(given, subject)
    return template if template is not None and template.strip() else None


def _default(given: Any, subject: str) -> str | None:
    """Return the only template, or the one named "default"; of equal names the last one counts."""
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, list):
        named = {
            _entry(entry, "name", subject): _entry(entry, "template", subject) for entry in given
        }
    elif isinstance(given, dict):
        named = {name: _entry(given, name, subject) for name in given}
    else:
        raise ModelError(f"{subject}: chat_template is {shown(given)}, not a text; {FIX}")
    if named and DEFAULT not in named:
        raise ModelError(
            f"{subject} has the chat templates {', '.join(named)} but no '{DEFAULT}'; save the one "
            f"to use as {TEMPLATE_FILE}"
        )
    return named.get(DEFAULT)


def _entry(entry: Any, key: str, subject: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise ModelError(
            f"{subject}: chat_template has {shown(entry)}, not a name and a template; {FIX}"
        )
    return value


def _text(path: Path) -> str:
    try:
        return read_regular_file(path, MAX_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); {FIX}") from error
