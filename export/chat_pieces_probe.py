"""A chat template asked what it makes of conversations, for freezing it."""

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
_DATE = "strftime_now"  # the function that says what time it is
_NOT_CALLED = "'str' object is not callable"
_LOST = (
    "the chat template does not write what the user says last; give the prompt as text, or use "
    "another template"
)
# Of all renderings, on any processor the same; usual templates have 5,500, 300,000 and 18 million.
_MAX_RENDERINGS = 50_000
_MAX_SPENT = Spent(steps=20_000_000, characters=1_000_000_000)
_MAX_LITERAL = 200  # characters of a text of the template that contents are tried with
_MAX_LITERALS = 150
_LIMITS = replace(TemplateLimits(), steps=200_000, seconds=60.0)  # of one rendering

Roles = tuple[str, ...]
Tokens = tuple[str | int, ...]  # a text with the number of a message where its content is


class UnfrozenError(Exception):
    """The template has no pieces for some conversations; the message says why."""


class HopelessTemplateError(Exception):
    """The template has no pieces for any conversation; the message says why."""


@dataclass(frozen=True)
class Domain:
    """Which sequences of roles are looked at: some templates are made of pieces for these only.

    name: for messages. system_first: a system message is the first one only. alternates: then a
    user's and an assistant's take turns.
    """

    name: str
    roles: Roles
    system_first: bool = False
    alternates: bool = False

    def has(self, sequence: Roles) -> bool:
        if not set(sequence) <= set(self.roles):
            return False
        rest = sequence[1:] if sequence[:1] == ("system",) else sequence
        if self.system_first and "system" in rest:
            return False
        turns = ("user", "assistant") * len(rest)
        return not self.alternates or rest == turns[: len(rest)]


class Prober:
    """Renders conversations with one template, within limits for all of them."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises PromptError if the template does not compile."""
        self._template = ChatTemplate(source, special_tokens, _LIMITS)
        self._num_renderings = 0
        self._known: dict[tuple[Roles, bool], Tokens | Refusal] = {}
        self._stem = _stem(source)
        self.word = f"{self._stem}00Xv"  # a content
        self.literals = literals(source)
        self.may_date = _DATE in self.literals.names

    def render(
        self, messages: Sequence[Mapping[str, str]], prompt: bool, with_date: bool = False
    ) -> str | Refusal:
        """The text of a conversation, or how it is refused. Raises HopelessTemplateError.

        prompt: add the generation prompt. with_date: else what has the current date is refused.
        """
        self._num_renderings += 1
        spent = self._template.spent
        if (
            self._num_renderings > _MAX_RENDERINGS
            or spent.steps > _MAX_SPENT.steps
            or spent.characters > _MAX_SPENT.characters
        ):
            raise HopelessTemplateError("it takes too many steps to find its pieces")
        try:
            # a text is not called: the template fails where it asks for the date
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
        """Messages of these roles; the content of each is a word of its own."""
        return [{"role": role, "content": f"{self._stem}{i:02d}Xv"} for i, role in enumerate(roles)]

    def tokens(self, roles: Roles, prompt: bool) -> Tokens | Refusal:
        """What a template writes around the contents of messages, and where it writes them."""
        key = roles, prompt
        if key not in self._known:
            text = self.render(self.conversation(roles), prompt)
            self._known[key] = text if isinstance(text, Refusal) else self._parsed(text)
        return self._known[key]

    def _parsed(self, text: str) -> Tokens:
        pieces = re.split(rf"{self._stem}(\d\d)Xv", text)
        tokens = (int(piece) if i % 2 else piece for i, piece in enumerate(pieces))
        return tuple(token for token in tokens if token != "")


@dataclass(frozen=True)
class Literals:
    """Constants of a template, with which it may compare contents.

    texts: all of its texts; marks: at which it splits; strips: characters that it takes off;
    starts, ends: for which it looks there.
    """

    texts: tuple[str, ...]
    marks: tuple[str, ...]
    strips: tuple[str, ...]
    starts: tuple[str, ...]
    ends: tuple[str, ...]
    numbers: tuple[int, ...]
    names: frozenset[str]


def literals(source: str) -> Literals:
    """The constants of a template that compiles."""
    tokens = list(Environment().lexer.tokenize(source))
    texts: dict[str, str] = {}  # text, and the method or filter that takes it
    arguments: dict[tuple[str, str], None] = {}
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
    """How single words begin: not as anything in the template, and with letters of both cases."""
    stem = "Bq7Wz"
    while stem in source:
        stem += "K"
    return stem
