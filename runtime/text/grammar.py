"""What an answer has to match: JSON schemas, regular expressions, context-free grammars.

The work is done by llguidance (MIT), which is loaded when the first grammar is used.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bita.errors import MissingExtraError, PromptError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_CHARACTERS = 1 << 16  # of a grammar; larger ones are hardly meant
# Room for line ends and indents; without a bound small models go on with spaces until the limit.
JSON_OPTIONS: Any = {"whitespace_pattern": r"[ \t\n]{0,20}"}


@dataclass(frozen=True)
class Grammar:
    """What a whole answer matches.

    kind: "json_schema", "regex" or "lark". text: JSON, the expression, or the grammar.

    Made by `json_schema`, `json_object`, `regex`, `lark` and `choice`. Raises PromptError.
    """

    kind: str
    text: str

    def __post_init__(self) -> None:
        if len(self.text) > MOST_CHARACTERS:
            raise PromptError(
                f"the grammar has {len(self.text)} characters; use at most {MOST_CHARACTERS}"
            )

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> "Grammar":
        """JSON that is valid under a schema; the parts of JSON Schema that llguidance knows.

        Up to 20 spaces and line ends may stand between tokens; "x-guidance" in the schema changes
        that: {"whitespace_flexible": false}.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise PromptError(f"the JSON schema is no JSON: {error}") from error
        if not isinstance(schema, Mapping):
            raise PromptError(f"the JSON schema is {schema!r:.60}; pass an object")
        try:
            return cls("json_schema", json.dumps(schema))
        except (TypeError, ValueError, RecursionError) as error:
            raise PromptError(f"the JSON schema is no JSON: {error}") from error

    @classmethod
    def json_object(cls) -> "Grammar":
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, expression: str) -> "Grammar":
        """Text that matches an expression from its start to its end (syntax of Rust's `regex`)."""
        return cls("regex", expression)

    @classmethod
    def lark(cls, grammar: str) -> "Grammar":
        """Text that `start` derives, in llguidance's variant of Lark's notation."""
        return cls("lark", grammar)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> "Grammar":
        """One of some texts."""
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise PromptError(f"choices are {texts!r:.60}; pass a list of texts, none empty")
        return cls("lark", "start: " + " | ".join(json.dumps(text) for text in texts))


class GrammarMatcher:
    """How far an answer has come through its grammar."""

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher

    def allowed(self) -> npt.NDArray[np.int64]:
        """The ids of the tokens that may follow, ascending; EOS among them where it may end.

        Cost: about 50 µs for most grammars.
        """
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.flatnonzero(np.unpackbits(mask, bitorder="little"))

    def take(self, token: int) -> None:
        """Go on with one of the allowed tokens."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether the answer matches and nothing can follow."""
        return bool(self._matcher.is_stopped())

    def forced(self) -> list[int]:
        """The tokens that can only follow, [] mostly: good drafts."""
        return list(self._matcher.compute_ff_tokens())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise PromptError(
                f"the grammar cannot be followed further: {self._matcher.get_error()}; simplify it"
            )


class GrammarCompiler:
    """Grammars over the tokens of one engine. Used by several threads.

    tokenizer_file: its tokenizer.json. eos_ids: tokens that end an answer.
    """

    def __init__(self, tokenizer_file: Path, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self._source = tokenizer_file, vocab_size, list(eos_ids)
        self._tokens: LLTokenizer | None = None

    def compile(self, grammar: Grammar) -> GrammarMatcher:
        """A matcher at the start of an answer. Raises PromptError for a grammar that is none."""
        try:
            from llguidance import LLMatcher
        except ModuleNotFoundError as error:
            raise MissingExtraError("structured output", "structured") from error
        try:
            if grammar.kind == "json_schema":
                text = LLMatcher.grammar_from_json_schema(grammar.text, defaults=JSON_OPTIONS)
            elif grammar.kind == "regex":
                text = LLMatcher.grammar_from_regex(grammar.text)
            else:
                text = LLMatcher.grammar_from_lark(grammar.text)
        except ValueError as error:  # too deep
            raise _unusable(grammar, str(error)) from error
        matcher = LLMatcher(self._tokenizer(), text, log_level=0)
        if matcher.is_error():
            raise _unusable(grammar, matcher.get_error())
        return GrammarMatcher(matcher)

    def _tokenizer(self) -> "LLTokenizer":
        if self._tokens is None:
            from llguidance import LLTokenizer

            file, vocab_size, eos_ids = self._source
            text = file.read_text(encoding="utf-8")
            self._tokens = LLTokenizer(text, n_vocab=vocab_size, eos_token=eos_ids)
        return self._tokens


def _unusable(grammar: Grammar, fault: str) -> PromptError:
    told = " ".join(fault.split())
    return PromptError(f"the {grammar.kind} grammar is not usable: {told:.400}")
