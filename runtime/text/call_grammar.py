"""Grammars of calls, made of the template's form of calls and the schemas of the tools."""

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
from bita.runtime.text.strict_schema import close_objects
from bita.runtime.text.tools import Tool

MAX_CALLS = 8  # per answer that must call; small models may repeat themselves


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
        """Return the grammar of a whole answer that consists of calls.

        Args:
            tools: The tools that may be called.
            is_single: Whether the answer is exactly one call.
            reasoning: Marks of the thinking that may precede the calls. None: no thinking.
            otherwise: JSON schema of an alternative answer. None: calls only.

        Raises:
            PromptError: If a schema is invalid or the grammar is too large.
        """
        first = [] if reasoning is None else [self._describe_thinking(reasoning)]
        return self._grammar(self.form.opening, tools, is_single, first, otherwise)

    def rest(self, tools: Sequence[Tool], is_single: bool) -> Grammar:
        """Return the grammar of the rest of a call, after the form's trigger.

        It includes further calls if these do not begin with the trigger themselves.
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
        between = None  # text between calls if each call has its own end
        if join is not None and join.startswith(self.form.closing):
            between = join[len(self.form.closing) :]
        spec = {
            "first": first,
            "opening": self.parts(opening),
            "middle": self.parts(self.form.middle),
            "join": None if join is None else self.parts(join),
            "between": None if between is None else self.parts(between),
            "closing": self.parts(self.form.closing),
            "max_calls": MAX_CALLS,
            "tools": [[tool.name, _arguments_schema(tool, self.form)] for tool in tools],
            "otherwise": None if otherwise is None else _add_white_space(otherwise),
        }
        text = json.dumps(spec)
        if len(text) > MAX_CHARACTERS:
            raise PromptError(
                f"tools: their grammar has {len(text)} characters; use at most {MAX_CHARACTERS}: "
                "fewer tools, or smaller schemas"
            )
        return Grammar("calls", text)

    def _describe_thinking(self, reasoning: Reasoning) -> Mapping[str, Any]:
        """Describe the thinking before the calls, required if the prompt has opened it."""
        opening = [] if reasoning.starts_inside else self.parts(reasoning.opening)
        return {
            "opening": opening,
            "closing": self.parts(reasoning.closing),
            "is_optional": not reasoning.starts_inside,
        }

    def parts(self, text: str) -> list[Part]:
        """Split a text into tokens that are not text, slots of ids, and the text between them."""
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


def _add_white_space(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema with explicit white space options."""
    given = schema.get("x-guidance")
    options = given if isinstance(given, dict) else {}
    return {**schema, "x-guidance": {**white_space(schema), **options}}


def _control_tokens(codec: TextCodec) -> dict[str, int]:
    """Return the ids, by string, of tokens that are not text for `GrammarTokens`."""
    found = {
        token.content: token_id
        for token_id, token in codec.tokenizer.get_added_tokens_decoder().items()
        if token.special or (token.content.startswith("<") and token.content.endswith(">"))
    }
    return {**found, ID_SLOT: -1}


def _arguments_schema(tool: Tool, form: CallForm) -> dict[str, Any]:
    """Return the schema of a tool's arguments, with objects closed."""
    try:
        schema = close_objects(tool.parameters, keeps_unnamed=not tool.is_strict)
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
