"""Probe a chat template with conversations, in order to freeze it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jinja2 import Environment

from bita.errors import PromptError
from bita.export.chat_pieces_form import WAY_AROUND, Refusal
from bita.runtime.text.chat_template import ChatTemplate, LostMessageError
from bita.runtime.text.message_forms import RejectedError
from bita.runtime.text.template_meter import Spent, TemplateLimits

ROLES = ("system", "user", "assistant", "tool")
REFUSED = (
    "the chat template refuses these messages; change their roles, order or keys, or use another "
    "template"
)
DATED = f"the chat template writes the current date into this prompt; {WAY_AROUND}"
_DATE = "strftime_now"  # the function that returns the current time
_NOT_CALLED = "'str' object is not callable"
_LOST = (
    "the chat template does not write the user's last message; give the prompt as text, or use "
    "another template"
)
# Limits of all renderings together, independent of the processor. Usual templates take 5,500
# renderings, 300,000 steps and 18 million characters.
_MAX_RENDERINGS = 50_000
_MAX_SPENT = Spent(steps=20_000_000, characters=1_000_000_000)
_MAX_LITERAL = 200  # characters of a text of the template that is tried in contents
_MAX_LITERALS = 150
_LIMITS = replace(TemplateLimits(), steps=200_000, seconds=60.0)  # of one rendering

Roles = tuple[str, ...]
Tokens = tuple[str | int, ...]  # a text, with a message's number in place of its content


class UnfrozenError(Exception):
    """The template has no pieces for some conversations; the message gives the reason."""


class HopelessTemplateError(Exception):
    """The template has no pieces for any conversation; the message gives the reason."""


@dataclass(frozen=True)
class Domain:
    """A set of sequences of roles; some templates have pieces only for a small one."""

    name: str  # for messages
    roles: Roles
    system_first: bool = False  # whether only the first message may be a system message
    alternates: bool = False  # whether user and assistant messages alternate, the user's first

    def has(self, sequence: Roles) -> bool:
        """Return whether the domain contains a sequence of roles."""
        if not set(sequence) <= set(self.roles):
            return False
        rest = sequence[1:] if sequence[:1] == ("system",) else sequence
        if self.system_first and "system" in rest:
            return False
        turns = ("user", "assistant") * len(rest)
        return not self.alternates or rest == turns[: len(rest)]


class Prober:
    """Renders conversations with one template, within limits for all renderings together."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile the template. Raises PromptError if it does not compile."""
        self._template = ChatTemplate(source, special_tokens, _LIMITS)
        self._num_renderings = 0
        self._known: dict[tuple[Roles, bool], Tokens | Refusal] = {}
        self._stem = _stem(source)
        self.word = f"{self._stem}00Xv"  # a content that is a single word
        self.literals = literals(source)
        self.may_date = _DATE in self.literals.names

    def render(
        self, messages: Sequence[Mapping[str, str]], prompt: bool, with_date: bool = False
    ) -> str | Refusal:
        """Return the text of a conversation, or its refusal.

        Args:
            messages: The conversation.
            prompt: Whether to add the generation prompt.
            with_date: Whether to render prompts that have the current date, instead of refusing.

        Raises:
            HopelessTemplateError: if the template cannot be frozen.
        """
        self._num_renderings += 1
        spent = self._template.spent
        if (
            self._num_renderings > _MAX_RENDERINGS
            or spent.steps > _MAX_SPENT.steps
            or spent.characters > _MAX_SPENT.characters
        ):
            raise HopelessTemplateError("finding its pieces takes too many steps")
        try:
            # a string is not callable, so the template fails where it asks for the date
            variables = {_DATE: _DATE} if self.may_date and not with_date else {}
            return self._template.render(messages, prompt, variables)
        except LostMessageError:
            return Refusal(_LOST, is_template=False)
        except RejectedError as error:
            message = str(error)
            if self.may_date and _NOT_CALLED in message:
                return Refusal(DATED, is_template=False)
            return Refusal(REFUSED if self._stem in message else message)
        except PromptError as error:
            raise HopelessTemplateError(str(error)) from error

    def conversation(self, roles: Roles) -> list[dict[str, str]]:
        """Return messages of these roles, each with a different word as its content."""
        return [{"role": role, "content": f"{self._stem}{i:02d}Xv"} for i, role in enumerate(roles)]

    def tokens(self, roles: Roles, prompt: bool) -> Tokens | Refusal:
        """Return the text of a conversation, split at the contents of its messages."""
        key = roles, prompt
        if key not in self._known:
            text = self.render(self.conversation(roles), prompt)
            self._known[key] = text if isinstance(text, Refusal) else self._split_text(text)
        return self._known[key]

    def _split_text(self, text: str) -> Tokens:
        pieces = re.split(rf"{self._stem}(\d\d)Xv", text)
        tokens = (int(piece) if i % 2 else piece for i, piece in enumerate(pieces))
        return tuple(token for token in tokens if token != "")


@dataclass(frozen=True)
class Literals:
    """Constants of a template, with which it may compare contents."""

    texts: tuple[str, ...]  # all string constants
    marks: tuple[str, ...]  # texts at which it splits
    strips: tuple[str, ...]  # characters that it strips
    starts: tuple[str, ...]  # arguments of startswith
    ends: tuple[str, ...]  # arguments of endswith
    numbers: tuple[int, ...]
    names: frozenset[str]


def literals(source: str) -> Literals:
    """Return the constants of a template that compiles."""
    tokens = list(Environment().lexer.tokenize(source))
    texts: dict[str, str] = {}
    arguments: dict[tuple[str, str], None] = {}  # a method or filter, and a text that it takes
    for before, _, token in zip(["", "", *tokens], ["", *tokens], tokens, strict=False):
        if token.type == "string" and 0 < len(token.value) <= _MAX_LITERAL:
            texts[token.value] = ""
            arguments[str(getattr(before, "value", "")), token.value] = None

    def given_to(*names: str) -> tuple[str, ...]:
        return tuple(text for name, text in arguments if name in names)[:_MAX_LITERALS]

    return Literals(
        tuple(texts)[:_MAX_LITERALS],
        given_to("split", "rsplit", "partition", "rpartition"),
        given_to("strip", "lstrip", "rstrip", "trim"),
        given_to("startswith"),
        given_to("endswith"),
        tuple({int(token.value): None for token in tokens if token.type == "integer"}),
        frozenset(token.value for token in tokens if token.type == "name"),
    )


def _stem(source: str) -> str:
    """Return a beginning for single words, in both cases of letters, not used in the template."""
    stem = "Bq7Wz"
    while stem in source:
        stem += "K"
    return stem
