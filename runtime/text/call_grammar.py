"""Grammars of calls: the form that a template writes them in, with each tool's schema."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bita.errors import PromptError
from bita.runtime.text.call_form import ID_SLOT, CallForm
from bita.runtime.text.call_lark import Part
from bita.runtime.text.codec import TextCodec
from bita.runtime.text.grammar import Grammar
from bita.runtime.text.grammar_size import MAX_CHARACTERS
from bita.runtime.text.grammar_source import white_space
from bita.runtime.text.reasoning import Reasoning
from bita.runtime.text.strict_schema import closed
from bita.runtime.text.tools import Tool

MAX_CALLS = 8  # of an answer that has to call: small models may repeat themselves


@dataclass(frozen=True)
class CallGrammars:
    """Makes the grammars of calls for one model."""

    form: CallForm
    codec: TextCodec

    def whole(
        self,
        tools: Sequence[Tool],
        is_single: bool,
        reasoning: Reasoning | None = None,
        otherwise: Mapping[str, Any] | None = None,
    ) -> Grammar:
        """Of an answer that is calls, after its thinking if it thinks.

        otherwise: the JSON schema of what the answer may be instead. Raises PromptError.
        """
        first = [] if reasoning is None else [self._thinking(reasoning)]
        return self._grammar(self.form.opening, tools, is_single, first, otherwise)

    def rest(self, tools: Sequence[Tool], is_single: bool) -> Grammar:
        """Of what follows the text with which a call certainly begins, to the end of the call; of
        several calls where they have no beginnings of their own.
        """
        is_single = is_single or self.form.repeats
        return self._grammar(self.form.rest_of_opening, tools, is_single, [], None)

    def _grammar(
        self,
        opening: str,
        tools: Sequence[Tool],
        is_single: bool,
        first: Sequence[Any],
        otherwise: Mapping[str, Any] | None,
    ) -> Grammar:
        join = None if is_single else self.form.join
        between = None  # where a call has its end before the next one begins
        if join is not None and join.startswith(self.form.closing):
            between = join[len(self.form.closing) :]
        order = {
            "first": first,
            "opening": self.parts(opening),
            "middle": self.parts(self.form.middle),
            "join": None if join is None else self.parts(join),
            "between": None if between is None else self.parts(between),
            "closing": self.parts(self.form.closing),
            "max_calls": MAX_CALLS,
            "tools": [[tool.name, _arguments(tool, self.form)] for tool in tools],
            "otherwise": None if otherwise is None else _spaced(otherwise),
        }
        text = json.dumps(order)
        if len(text) > MAX_CHARACTERS:
            raise PromptError(
                f"tools: their grammar has {len(text)} characters; use at most {MAX_CHARACTERS}: "
                "fewer tools, or smaller schemas"
            )
        return Grammar("calls", text)

    def _thinking(self, reasoning: Reasoning) -> Mapping[str, Any]:
        """Thinking that may come first; all of it has to where the prompt has opened it."""
        opening = [] if reasoning.starts_inside else self.parts(reasoning.opening)
        return {
            "opening": opening,
            "closing": self.parts(reasoning.closing),
            "is_optional": not reasoning.starts_inside,
        }

    def parts(self, text: str) -> list[Part]:
        """A text as the tokens that are not text in it, slots of ids, and what is between."""
        return list(self._parts(text))

    def _parts(self, text: str) -> Iterator[Part]:
        tokens = _control_tokens(self.codec)
        while text:
            places = [(text.find(each), -len(each), each) for each in tokens if each in text]
            place, _, mark = min(places, default=(len(text), 0, ""))
            if place:
                yield {"text": text[:place]}
            if mark == ID_SLOT:
                yield {"id": True}
            elif mark:
                yield {"token": tokens[mark]}
            text = text[place + len(mark) :]


def _spaced(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema that says which white space it allows."""
    given = schema.get("x-guidance")
    options = given if isinstance(given, dict) else {}
    return {**schema, "x-guidance": {**white_space(schema), **options}}


def _control_tokens(codec: TextCodec) -> dict[str, int]:
    """Ids by string of the tokens that are not text in grammars, as `GrammarTokens` has them."""
    found = {
        token.content: token_id
        for token_id, token in codec.tokenizer.get_added_tokens_decoder().items()
        if token.special or (token.content.startswith("<") and token.content.endswith(">"))
    }
    return {**found, ID_SLOT: -1}


def _arguments(tool: Tool, form: CallForm) -> dict[str, Any]:
    """The schema of a tool's arguments. Objects have the properties that it names."""
    try:
        schema = closed(tool.parameters, keeps_unnamed=not tool.is_strict)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"tools: the parameters of {tool.name!r} are not usable: {error}") from (
            error
        )
    spaces = {
        "item_separator": form.item_separator,
        "key_separator": form.key_separator,
        "whitespace_flexible": False,
    }
    return {**schema, "x-guidance": spaces}
