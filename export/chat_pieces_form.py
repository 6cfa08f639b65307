"""A chat template as pieces: a small automaton over roles, which renders without Jinja.

The text of a message depends on its role, on the state reached by the messages before it, and on
what follows it: nothing, other messages, or some message of a user. A piece is the text up to the
message's content; the text after the last content belongs to the state, with or without a
generation prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bita.errors import PromptError

FORMAT = 1
SPACES = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())  # all 29 of Python's
NOTHING, OTHERS, USER = "nothing", "others", "user"
FOLLOWERS = (NOTHING, OTHERS, USER)  # USER: a message of a user comes next or later
WAY_AROUND = "render the prompt elsewhere and give it as text"


class UncoveredError(PromptError):
    """The pieces do not cover these messages."""


class RefusedError(PromptError):
    """The template refuses these messages."""


@dataclass(frozen=True)
class Strip:
    """The characters that are stripped from the ends of a content; SPACES for white space."""

    left: str = ""
    right: str = ""

    def of(self, text: str) -> str:
        """Return the stripped text."""
        text = text.lstrip(self.left) if self.left else text
        return text.rstrip(self.right) if self.right else text

    def to_json(self) -> dict[str, Any]:
        sides = {"left": self.left, "right": self.right}
        return {side: taken == SPACES or taken for side, taken in sides.items() if taken}


Part = str | Strip  # a text, or the content of the first message


@dataclass(frozen=True)
class Refusal:
    """An error in place of a piece, for messages that are not rendered."""

    message: str
    is_template: bool = True  # whether the template refuses them; else the pieces do not cover them

    def error(self) -> PromptError:
        return (RefusedError if self.is_template else UncoveredError)(self.message)


@dataclass(frozen=True)
class Piece:
    """The text written for a message in one place."""

    before: tuple[Part, ...] = ()  # the text between the content written last and this one
    strip: Strip | None = None  # how the content is stripped; None omits it and `before`
    mark: str = ""  # of a content with it, only the text after its last occurrence is written
    cut: Strip = Strip()  # how that text is stripped
    uncovered: tuple[str, ...] = ()  # contents with one of these texts are refused
    covers_blank: bool = True  # False: contents of white space only are refused

    def content(self, text: str) -> str:
        """Return the text written for a content. Raises UncoveredError if it is not covered."""
        if not self.covers_blank and not text.strip():
            raise UncoveredError(f"a message of white space only is not covered; {WAY_AROUND}")
        for each in self.uncovered:
            if each in text:
                raise UncoveredError(f"a message with {each!r} is not covered; {WAY_AROUND}")
        if self.strip is None:
            return ""
        if self.mark and self.mark in text:
            return self.cut.of(text.rpartition(self.mark)[2])
        return self.strip.of(text)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.strip is not None:
            found |= {"before": parts_to_json(self.before), "content": self.strip.to_json()}
        if self.mark:
            found["after_mark"] = {"mark": self.mark, **self.cut.to_json()}
        if self.uncovered:
            found["uncovered"] = list(self.uncovered)
        if not self.covers_blank:
            found["covers_blank"] = False
        return found


@dataclass(frozen=True)
class State:
    """A state of the automaton, reached by some messages."""

    pieces: Mapping[tuple[str, str], Piece | Refusal]  # by role and follower
    to: Mapping[str, int]  # the next state by role; roles without one are missing
    ends: Mapping[bool, tuple[Part, ...] | Refusal]  # text at the end, by add_generation_prompt


@dataclass(frozen=True)
class ChatPieces:
    """A frozen template."""

    states: tuple[State, ...]  # the first is the one without messages
    covers: str  # a description of the conversations that it was proved for
    covers_developer: bool = True  # whether "developer" is read as "system", as in `known_roles`

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """Return the prompt of checked messages. Raises RefusedError or UncoveredError."""
        roles = self._known([message["role"] for message in messages])
        contents = [message["content"] for message in messages]
        written: list[str] = []
        index = 0
        for role, follower, content in zip(roles, followers(roles), contents, strict=True):
            state = self.states[index]
            piece = state.pieces[role, follower]
            if isinstance(piece, Refusal):
                raise piece.error()
            text = piece.content(content)
            if piece.strip is not None:
                written += [*texts(piece.before, contents[0]), text]
            index = state.to[role]
        end = self.states[index].ends[add_generation_prompt]
        if isinstance(end, Refusal):
            raise end.error()
        return "".join([*written, *texts(end, contents[0])])

    def _known(self, roles: Sequence[str]) -> list[str]:
        if self.covers_developer:
            return ["system" if role == "developer" else role for role in roles]
        if "developer" in roles:
            raise UncoveredError(f"the role 'developer' is not covered; {WAY_AROUND}")
        return list(roles)

    def to_json(self) -> dict[str, Any]:
        refusals: list[Refusal] = []
        states = [_state_to_json(state, refusals) for state in self.states]
        return {
            "covers": self.covers,
            "covers_developer": self.covers_developer,
            "refusals": [
                {"message": each.message, "is_template": each.is_template} for each in refusals
            ],
            "states": states,
        }


def followers(roles: Sequence[str]) -> list[str]:
    """Return the follower of each message: NOTHING, OTHERS or USER."""
    found = [NOTHING]
    for _, after in reversed(list(pairwise(roles))):
        found.append(USER if after == "user" or found[-1] == USER else OTHERS)
    return found[::-1]


def texts(parts: Sequence[Part], first: str) -> list[str]:
    return [part if isinstance(part, str) else part.of(first) for part in parts]


def parts_to_json(parts: Sequence[Part]) -> list[Any]:
    return [part if isinstance(part, str) else {"first": part.to_json()} for part in parts]


def _state_to_json(state: State, refusals: list[Refusal]) -> dict[str, Any]:
    def to_json(piece: Piece | Refusal) -> dict[str, Any]:
        return _refer_to(piece, refusals) if isinstance(piece, Refusal) else piece.to_json()

    def end_to_json(end: tuple[Part, ...] | Refusal) -> dict[str, Any]:
        if isinstance(end, Refusal):
            return _refer_to(end, refusals)
        return {"text": parts_to_json(end)}

    roles: dict[str, dict[str, Any]] = {}
    for (role, follower), piece in state.pieces.items():
        pieces = roles.setdefault(role, {"pieces": []})["pieces"]
        _add_piece(pieces, follower, to_json(piece))
    for role, number in state.to.items():
        roles[role]["to"] = number
    ends = {"plain": end_to_json(state.ends[False]), "prompt": end_to_json(state.ends[True])}
    return {"roles": roles, "ends": ends}


def _refer_to(refusal: Refusal, refusals: list[Refusal]) -> dict[str, Any]:
    if refusal not in refusals:
        refusals.append(refusal)
    return {"refusal": refusals.index(refusal)}


def _add_piece(pieces: list[dict[str, Any]], follower: str, found: dict[str, Any]) -> None:
    """Add a piece for a follower; equal pieces are written once, with all their followers."""
    for each in pieces:
        if each == {"followed_by": each["followed_by"], **found}:
            each["followed_by"].append(follower)
            return
    pieces.append({"followed_by": [follower], **found})
