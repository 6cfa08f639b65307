"""Chat templates frozen into pieces, for programs that cannot run Jinja.

A template that writes one message after another is learned by rendering conversations of single
words (`chat_pieces_states`) and probing how it writes contents (`chat_pieces_contents`). The pieces
are then proved against it (`chat_pieces_proof`). Any other template is not frozen; the file gives
the reason.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from bita.errors import PromptError
from bita.export.chat_pieces_contents import with_contents
from bita.export.chat_pieces_form import FORMAT, NOTHING, USER, ChatPieces, Piece, Refusal, State
from bita.export.chat_pieces_probe import (
    DATED,
    ROLES,
    Domain,
    HopelessTemplateError,
    Prober,
    UnfrozenError,
)
from bita.export.chat_pieces_proof import prove
from bita.export.chat_pieces_states import Learner

_WITHOUT_TOOLS = ("system", "user", "assistant")
_DOMAINS = (
    Domain("all conversations", ROLES),
    Domain("conversations without tools", _WITHOUT_TOOLS),
    Domain("conversations without tools or later system messages", _WITHOUT_TOOLS, True),
    Domain(
        "alternating user and assistant messages, with or without a system message",
        _WITHOUT_TOOLS,
        True,
        True,
    ),
    Domain("one question, with or without a system message", ("system", "user"), True, True),
)


@dataclass(frozen=True)
class Unfrozen:
    """The result for a template without pieces."""

    reason: str


def freeze(source: str, special_tokens: Mapping[str, str]) -> ChatPieces | Unfrozen:
    """Return the pieces of a template, or the reason why it has none.

    Takes one or two seconds for usual templates.

    Args:
        source: The Jinja source.
        special_tokens: Special tokens by name, as `ChatTemplate` takes them.
    """
    try:
        pieces = _freeze_widest(Prober(source, special_tokens))
        return replace(pieces, covers_developer="developer" not in source)
    except (PromptError, HopelessTemplateError, UnfrozenError) as error:
        return Unfrozen(str(error).encode(errors="backslashreplace").decode())


def _freeze_widest(prober: Prober) -> ChatPieces:
    """Return the pieces for the widest domain of conversations that has some."""
    reason = ""
    for domain in _DOMAINS:
        try:
            return _freeze_domain(prober, domain)
        except UnfrozenError as error:
            reason = str(error)
    raise UnfrozenError(reason)


def pieces_file(source: str, special_tokens: Mapping[str, str]) -> str:
    """Return the content of an engine's CHAT_PIECES_FILE."""
    return _make_file(source, tuple(special_tokens.items()))


@lru_cache(maxsize=4)  # a build may also write the reference engine
def _make_file(source: str, special_tokens: tuple[tuple[str, str], ...]) -> str:
    found = freeze(source, dict(special_tokens))
    head = {"format": FORMAT, "template_sha256": hashlib.sha256(source.encode()).hexdigest()}
    if isinstance(found, Unfrozen):
        return _to_text({**head, "reason": found.reason})
    try:
        return _to_text({**head, **found.to_json()})
    except UnicodeEncodeError:
        return _to_text({**head, "reason": "its output is not valid Unicode"})


def _to_text(value: Mapping[str, Any]) -> str:
    """Return the value as JSON. Raises UnicodeEncodeError for halves of surrogate pairs."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    text.encode()
    return text


def _freeze_domain(prober: Prober, domain: Domain) -> ChatPieces:
    try:
        skeleton = Learner(prober, domain, moves_first=False).learn()
    except UnfrozenError:
        skeleton = Learner(prober, domain, moves_first=True).learn()
    _check_questions(skeleton.states[0])
    covers = f"{domain.name}, where the prompt has no date" if prober.may_date else domain.name
    pieces = ChatPieces(with_contents(prober, skeleton), covers)
    return prove(pieces, prober, domain)


def _check_questions(start: State) -> None:
    """Raise an error if no conversation can begin with a question, even after a system message."""
    question = start.pieces["user", NOTHING]
    if isinstance(question, Piece) or isinstance(start.pieces["system", USER], Piece):
        return
    reason = "it writes the current date" if question.message == DATED else question.message
    if all(isinstance(piece, Refusal) for piece in start.pieces.values()):
        raise HopelessTemplateError(reason)
    raise UnfrozenError(reason)
