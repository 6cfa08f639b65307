"""Grammars for answers: JSON schemas, regular expressions, context-free grammars.

They are implemented by llguidance (MIT), which is loaded when the first grammar is used.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bita.errors import PromptError
from bita.json_values import parse_json, shown
from bita.runtime.text.grammar_size import LIMITS, MAX_CHARACTERS, is_simple
from bita.runtime.text.grammar_source import (
    check_installed,
    clean_fault,
    refuse_panics,
    source_text,
)
from bita.runtime.text.grammar_tokens import GrammarTokens
from bita.runtime.text.grammar_trial import try_grammar
from bita.runtime.text.strict_schema import close_objects

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_KEPT = 4  # cached compiled grammars
MAX_KEPT_BYTES = 16 << 20  # of a cached grammar after compilation
MAX_MASKS = 500  # computed with a cached grammar; each may increase its memory
MAX_VERDICTS = 256  # remembered


@dataclass(frozen=True)
class Grammar:
    """A constraint that the whole answer must match.

    Create one with `json_schema`, `json_object`, `regex`, `lark` or `choice`.

    Raises:
        PromptError: If the text is too long or not valid Unicode.
    """

    kind: str  # "json_schema", "regex", "lark", "choice" or "calls"
    text: str  # a schema as JSON, an expression, a grammar, a list as JSON, or calls as JSON

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise PromptError(f"the {self.kind} grammar is {shown(self.text)}; pass a text")
        if len(self.text) > MAX_CHARACTERS:
            raise PromptError(
                f"the grammar has {len(self.text)} characters; use at most {MAX_CHARACTERS}"
            )
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the grammar holds half a surrogate pair at character {error.start}; pass valid "
                "Unicode"
            ) from error

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """The JSON schema; None for grammars of other kinds."""
        found: Any = json.loads(self.text) if self.kind == "json_schema" else None
        return found if isinstance(found, dict) else None

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str, strict: bool = False) -> "Grammar":
        """Match JSON that is valid under a schema.

        The JSON has no white space between its tokens, as in {"n":1,"l":[]}. "x-guidance" at the
        top of the schema changes that: {"whitespace_flexible": true} allows up to 20 spaces and
        line ends, {"whitespace_pattern": "…"} whatever the expression matches.

        Args:
            schema: A JSON schema, with the parts of JSON Schema that llguidance supports.
            strict: Whether objects may only have the properties that the schema names, unless it
                has "additionalProperties". Applies to objects in arrays, alternatives and
                definitions too.

        Raises:
            PromptError: If the schema is invalid.
        """
        if isinstance(schema, str):
            try:
                schema = parse_json(schema)
            except ValueError as error:
                raise PromptError(f"the JSON schema is not valid JSON: {error}") from error
        if not isinstance(schema, Mapping):
            raise PromptError(f"the JSON schema is {shown(schema)}; pass an object")
        try:
            grammar = cls("json_schema", json.dumps(schema))
            return cls("json_schema", json.dumps(close_objects(schema))) if strict else grammar
        except (TypeError, ValueError, RecursionError) as error:
            raise PromptError(f"the JSON schema is not usable: {error}") from error

    @classmethod
    def json_object(cls) -> "Grammar":
        """Match any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, expression: str) -> "Grammar":
        """Match a regular expression from start to end (syntax of Rust's `regex`)."""
        return cls("regex", expression)

    @classmethod
    def lark(cls, grammar: str) -> "Grammar":
        """Match the rule `start` of a grammar in llguidance's variant of Lark's notation."""
        return cls("lark", grammar)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> "Grammar":
        """Match one of several texts."""
        is_list = isinstance(texts, Sequence) and not isinstance(texts, str)
        if not is_list or not texts or not all(isinstance(text, str) and text for text in texts):
            raise PromptError(f"choices are {shown(texts)}; pass a list of non-empty texts")
        return cls("choice", json.dumps(list(texts), ensure_ascii=False))


@dataclass
class Compiled:
    """A compiled grammar. Answers work on copies of its matcher, which share cached state."""

    matcher: "LLMatcher"
    num_masks: int = 0
    has_failed: bool = False

    @property
    def is_worn(self) -> bool:
        """Whether the next answer should compile the grammar again."""
        return self.has_failed or self.num_masks > MAX_MASKS


class GrammarMatcher:
    """The position of an answer in its grammar. Allocates memory on first use."""

    def __init__(self, compiled: Callable[[], Compiled], tokens: GrammarTokens) -> None:
        self._find = compiled
        self._tokens = tokens
        self._compiled: Compiled | None = None
        self._matcher: LLMatcher | None = None
        self._is_complete = False

    def allowed(self) -> npt.NDArray[np.int64]:
        """Return the ascending ids of the tokens that may follow, EOS included if it may end.

        Takes about 50 µs for most grammars, and at most a second. Raises PromptError if no token
        may follow, or the grammar becomes too complex.
        """
        ids = self._allowed()
        if not len(ids):
            raise self._failure("no token of the model continues it")
        return ids

    def take_text(self, text: bytes) -> bool:
        """Continue with a text, whatever its tokens, and return whether the grammar allows it.

        If it does not, the matcher must not be used any longer.
        """
        try:
            tokens = self._tokens(text.decode())
        except (UnicodeDecodeError, PromptError):
            return False
        return self._started().try_consume_tokens(tokens) == len(tokens)

    def take(self, token: int) -> None:
        """Continue with an allowed token."""
        matcher = self._started()
        matcher.consume_token(token)
        self._check(matcher)
        self._is_complete = bool(matcher.is_stopped()) or (
            not self._tokens.eos_ids and matcher.is_accepting() and not len(self._allowed())
        )

    @property
    def is_complete(self) -> bool:
        """Whether the answer matches and nothing can follow."""
        return self._is_complete

    def forced(self) -> list[int]:
        """Return the only possible next tokens, usually []. They are good drafts."""
        return list(self._started().compute_ff_tokens())

    def close(self) -> None:
        """Free the memory; only `is_complete` may be used afterwards."""
        self._compiled = self._matcher = None

    def _allowed(self) -> npt.NDArray[np.int64]:
        matcher = self._started()
        assert self._compiled is not None
        self._compiled.num_masks += 1
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        self._check(matcher)
        usable = self._tokens.usable
        mask = mask[: len(usable)] & usable  # only rows that exist and have a text
        return np.flatnonzero(np.unpackbits(mask, bitorder="little"))

    def _started(self) -> "LLMatcher":
        if self._compiled is None or self._matcher is None:
            self._compiled = self._find()
            self._matcher = self._compiled.matcher.deep_copy()
        return self._matcher

    def _check(self, matcher: "LLMatcher") -> None:
        if matcher.is_error():
            raise self._failure(clean_fault(matcher.get_error()))

    def _failure(self, fault: str) -> PromptError:
        if self._compiled is not None:
            self._compiled.has_failed = True
        return PromptError(f"the grammar cannot be followed further: {fault}; simplify it")


@dataclass(frozen=True)
class _Verdict:
    """The result of checking a grammar."""

    fault: str | None  # why it is refused; None: it is usable
    is_kept: bool = True  # whether it is small enough to be cached


class GrammarCompiler:
    """Compiles grammars over the tokens of one engine. Thread-safe.

    Memory and time are bounded: a grammar that is not simple is first tried in another process
    (`grammar_trial`), and only a few small ones are cached for later answers.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        """Create a compiler; tokens are read on first use.

        Args:
            tokenizer: The tokenizer of the opened engine.
            vocab_size: Rows of the model's logits; the tokenizer may have more or fewer tokens.
            eos_ids: Tokens that end an answer.
        """
        self._source = tokenizer, vocab_size, list(eos_ids)
        self._lock = Lock()
        self._loaded: tuple[GrammarTokens, LLTokenizer] | None = None
        self._verdicts: OrderedDict[Grammar, _Verdict] = OrderedDict()
        self._kept: OrderedDict[Grammar, Compiled] = OrderedDict()

    def load(self) -> None:
        """Read all tokens in advance, so that the first grammar does not wait (0.1 to 2 s)."""
        check_installed()
        self._tokenizer()

    def compile(
        self, grammar: Grammar, is_wanted: Callable[[], bool] = lambda: True
    ) -> GrammarMatcher:
        """Return a matcher at the start of an answer.

        Args:
            grammar: The grammar.
            is_wanted: Called repeatedly during a long compilation; False ends it.

        Raises:
            PromptError: If the grammar is invalid, takes too much, or is no longer wanted.
        """
        check_installed()
        with self._lock:
            verdict = self._verdicts.get(grammar)
        if verdict is None:
            verdict = self._judge(grammar, is_wanted)
            with self._lock:
                _add(self._verdicts, grammar, verdict, MAX_VERDICTS)
        if verdict.fault is not None:
            raise PromptError(f"the {grammar.kind} grammar {verdict.fault}")
        return GrammarMatcher(
            lambda: self._compiled(grammar, verdict.is_kept), self._tokenizer()[0]
        )

    def _judge(self, grammar: Grammar, is_wanted: Callable[[], bool]) -> _Verdict:
        tokens, _ = self._tokenizer()
        try:
            text = source_text(grammar.kind, grammar.text, tokens.spells_all)
        except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
            return _Verdict(f"is not usable: {clean_fault(str(error))}")
        is_kept = True
        if not is_simple(grammar.kind, grammar.text):
            trial = try_grammar(text, tokens, is_wanted)
            if trial.fault is not None:
                return _Verdict(f"{trial.fault}; use shorter or fewer patterns")
            is_kept = trial.num_bytes <= MAX_KEPT_BYTES
        compiled = self._compiled(grammar, is_kept)
        if compiled.matcher.is_error():
            return _Verdict(f"is not usable: {clean_fault(compiled.matcher.get_error())}")
        return _Verdict(None, is_kept)

    def _compiled(self, grammar: Grammar, is_kept: bool) -> Compiled:
        """Return the cached grammar, or compile it again."""
        with self._lock:
            found = self._kept.get(grammar)
            if found is not None and not found.is_worn:
                self._kept.move_to_end(grammar)
                return found
        tokens, _ = self._tokenizer()
        text = source_text(grammar.kind, grammar.text, tokens.spells_all)
        compiled = Compiled(self._matcher(text))
        if is_kept and not compiled.matcher.is_error():
            with self._lock:
                _add(self._kept, grammar, compiled, MAX_KEPT)
        return compiled

    def _matcher(self, text: str) -> "LLMatcher":
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(**LIMITS)
        with refuse_panics():
            return LLMatcher(self._tokenizer()[1], text, log_level=0, limits=limits)

    def _tokenizer(self) -> "tuple[GrammarTokens, LLTokenizer]":
        with self._lock:
            if self._loaded is None:
                from llguidance import LLTokenizer

                tokens = GrammarTokens(*self._source)
                wrapper: Any = tokens
                with refuse_panics():
                    self._loaded = tokens, LLTokenizer(wrapper, eos_token=tokens.eos_ids or None)
            return self._loaded


def _add(kept: OrderedDict[Grammar, Any], grammar: Grammar, value: Any, most: int) -> None:
    """Add to a cache of the `most` newest values."""
    kept[grammar] = value
    kept.move_to_end(grammar)
    while len(kept) > most:
        kept.popitem(last=False)
