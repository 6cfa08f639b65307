"""Chat templates frozen into pieces, for programs that cannot run Jinja.

A template that writes one message after the other is found out by rendering conversations of single
words (`chat_pieces_states`), asked what it does with contents (`chat_pieces_contents`), and the
pieces are proved against it (`chat_pieces_proof`). Any other template is not frozen, with a reason.
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
from bita.export.chat_pieces_proof import proved
from bita.export.chat_pieces_states import Learner

_WITHOUT_TOOLS = ("system", "user", "assistant")
_DOMAINS = (
    Domain("all conversations", ROLES),
    Domain("conversations without tools", _WITHOUT_TOOLS),
    Domain("conversations without tools or later system messages", _WITHOUT_TOOLS, True),
    Domain(
        "a user and an assistant in turns, with a system message or none",
        _WITHOUT_TOOLS,
        True,
        True,
    ),
    Domain("one question, with a system message or none", ("system", "user"), True, True),
)


@dataclass(frozen=True)
class Unfrozen:
    """Why a template has no pieces."""

    reason: str


def freeze(source: str, special_tokens: Mapping[str, str]) -> ChatPieces | Unfrozen:
    """The pieces of a template, or why there are none.

    special_tokens: as those of ChatTemplate. Takes one or two seconds for usual templates.
    """
    try:
        pieces = _first_frozen(Prober(source, special_tokens))
        return replace(pieces, covers_developer="developer" not in source)
    except (PromptError, HopelessTemplateError, UnfrozenError) as error:
        return Unfrozen(str(error).encode(errors="backslashreplace").decode())


def _first_frozen(prober: Prober) -> ChatPieces:
    """The pieces for as many kinds of conversations as possible."""
    reason = ""
    for domain in _DOMAINS:
        try:
            return _frozen(prober, domain)
        except UnfrozenError as error:
            reason = str(error)
    raise UnfrozenError(reason)


def pieces_file(source: str, special_tokens: Mapping[str, str]) -> str:
    """The content of an engine's CHAT_PIECES_FILE."""
    return _file(source, tuple(special_tokens.items()))


@lru_cache(maxsize=4)  # a build may write the reference engine too
def _file(source: str, special_tokens: tuple[tuple[str, str], ...]) -> str:
    found = freeze(source, dict(special_tokens))
    head = {"format": FORMAT, "template_sha256": hashlib.sha256(source.encode()).hexdigest()}
    if isinstance(found, Unfrozen):
        return _written({**head, "reason": found.reason})
    try:
        return _written({**head, **found.to_json()})
    except UnicodeEncodeError:
        return _written({**head, "reason": "it writes what is not valid Unicode"})


def _written(value: Mapping[str, Any]) -> str:
    """JSON; raises UnicodeEncodeError for halves of surrogate pairs."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    text.encode()
    return text


def _frozen(prober: Prober, domain: Domain) -> ChatPieces:
    try:
        skeleton = Learner(prober, domain, moves_first=False).learn()
    except UnfrozenError:
        skeleton = Learner(prober, domain, moves_first=True).learn()
    _check_questions(skeleton.states[0])
    covers = f"{domain.name}, where the prompt has no date" if prober.may_date else domain.name
    pieces = ChatPieces(with_contents(prober, skeleton), covers)
    return proved(pieces, prober, domain)


def _check_questions(start: State) -> None:
    """Raise an error if no conversation begins with a question, after a system message or not."""
    question = start.pieces["user", NOTHING]
    if isinstance(question, Piece) or isinstance(start.pieces["system", USER], Piece):
        return
    reason = "it writes the current date" if question.message == DATED else question.message
    if all(isinstance(piece, Refusal) for piece in start.pieces.values()):
        raise HopelessTemplateError(reason)
    raise UnfrozenError(reason)
