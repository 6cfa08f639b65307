"""What an answer has to match: JSON schemas, regular expressions, context-free grammars.

The work is done by llguidance (MIT), which is loaded when the first grammar is used.
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
from bita.runtime.text.grammar_source import check_installed, panics_refused, source_text, told
from bita.runtime.text.grammar_tokens import GrammarTokens
from bita.runtime.text.grammar_trial import try_grammar
from bita.runtime.text.strict_schema import closed

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_KEPT = 4  # compiled grammars
MAX_KEPT_BYTES = 16 << 20  # of one that is kept, when it is new
MAX_MASKS = 500  # of one that is kept: each may leave some memory in it
MAX_VERDICTS = 256


@dataclass(frozen=True)
class Grammar:
    """What a whole answer matches.

    kind: "json_schema", "regex", "lark", "choice" or "calls". text: JSON, the expression, the
    grammar, a list of texts as JSON, or what `CallGrammars` makes.

    Made by `json_schema`, `json_object`, `regex`, `lark` and `choice`. Raises PromptError.
    """

    kind: str
    text: str

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
        """The JSON schema that it is; None for other kinds."""
        found: Any = json.loads(self.text) if self.kind == "json_schema" else None
        return found if isinstance(found, dict) else None

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str, strict: bool = False) -> "Grammar":
        """JSON that is valid under a schema; the parts of JSON Schema that llguidance knows.

        strict: objects take no properties but those that the schema names, unless it says
        otherwise by "additionalProperties"; inside arrays, alternatives and definitions too.

        Nothing stands between tokens, as in {"n":1,"l":[]}; "x-guidance" at the top of the schema
        changes that: {"whitespace_flexible": true} for up to 20 spaces and line ends,
        {"whitespace_pattern": "…"} for an expression of your own.
        """
        if isinstance(schema, str):
            try:
                schema = parse_json(schema)
            except ValueError as error:
                raise PromptError(f"the JSON schema is no JSON: {error}") from error
        if not isinstance(schema, Mapping):
            raise PromptError(f"the JSON schema is {shown(schema)}; pass an object")
        try:
            grammar = cls("json_schema", json.dumps(schema))
            return cls("json_schema", json.dumps(closed(schema))) if strict else grammar
        except (TypeError, ValueError, RecursionError) as error:
            raise PromptError(f"the JSON schema is not usable: {error}") from error

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
        is_list = isinstance(texts, Sequence) and not isinstance(texts, str)
        if not is_list or not texts or not all(isinstance(text, str) and text for text in texts):
            raise PromptError(f"choices are {shown(texts)}; pass a list of texts, none empty")
        return cls("choice", json.dumps(list(texts), ensure_ascii=False))


@dataclass
class Compiled:
    """A grammar that answers start from. Copies share what they find out about it."""

    matcher: "LLMatcher"
    num_masks: int = 0
    has_failed: bool = False

    @property
    def is_worn(self) -> bool:
        """Whether answers to come should start from another."""
        return self.has_failed or self.num_masks > MAX_MASKS


class GrammarMatcher:
    """How far an answer has come through its grammar. Its memory is taken at the first use."""

    def __init__(self, compiled: Callable[[], Compiled], tokens: GrammarTokens) -> None:
        self._find = compiled
        self._tokens = tokens
        self._compiled: Compiled | None = None
        self._matcher: LLMatcher | None = None
        self._is_complete = False

    def allowed(self) -> npt.NDArray[np.int64]:
        """The ids of the tokens that may follow, ascending; EOS among them where it may end.

        Cost: about 50 µs for most grammars, and a second at most. Raises PromptError if no token
        may follow, or the grammar gets too complex.
        """
        ids = self._allowed()
        if not len(ids):
            raise self._failure("no token of the model continues it")
        return ids

    def take_text(self, text: bytes) -> bool:
        """Continue with a text, however it is cut into tokens; says whether that is possible.

        If it is not, nothing may be asked of the matcher any more.
        """
        try:
            tokens = self._tokens(text.decode())
        except (UnicodeDecodeError, PromptError):
            return False
        return self._started().try_consume_tokens(tokens) == len(tokens)

    def take(self, token: int) -> None:
        """Continue with one of the allowed tokens."""
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
        """The tokens that can only follow, [] mostly: good drafts."""
        return list(self._started().compute_ff_tokens())

    def close(self) -> None:
        """Give the memory back; only `is_complete` may be asked then."""
        self._compiled = self._matcher = None

    def _allowed(self) -> npt.NDArray[np.int64]:
        matcher = self._started()
        assert self._compiled is not None
        self._compiled.num_masks += 1
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        self._check(matcher)
        usable = self._tokens.usable
        mask = mask[: len(usable)] & usable  # no row that stands for nothing, and none beyond
        return np.flatnonzero(np.unpackbits(mask, bitorder="little"))

    def _started(self) -> "LLMatcher":
        if self._compiled is None or self._matcher is None:
            self._compiled = self._find()
            self._matcher = self._compiled.matcher.deep_copy()
        return self._matcher

    def _check(self, matcher: "LLMatcher") -> None:
        if matcher.is_error():
            raise self._failure(told(matcher.get_error()))

    def _failure(self, fault: str) -> PromptError:
        if self._compiled is not None:
            self._compiled.has_failed = True
        return PromptError(f"the grammar cannot be followed further: {fault}; simplify it")


@dataclass(frozen=True)
class _Verdict:
    """Whether a grammar is usable. fault: why not. is_kept: whether it is small when compiled."""

    fault: str | None
    is_kept: bool = True


class GrammarCompiler:
    """Grammars over the tokens of one engine. Used by several threads.

    tokenizer: as it was read when the engine was opened. vocab_size: rows of the model's logits;
    the tokenizer may have more tokens or fewer. eos_ids: tokens that end an answer.

    What is compiled is bounded: a grammar that is not simple is tried in another process first
    (`grammar_trial`), and only some that are small are kept for later answers.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self._source = tokenizer, vocab_size, list(eos_ids)
        self._lock = Lock()
        self._loaded: tuple[GrammarTokens, LLTokenizer] | None = None
        self._verdicts: OrderedDict[Grammar, _Verdict] = OrderedDict()
        self._kept: OrderedDict[Grammar, Compiled] = OrderedDict()

    def load(self) -> None:
        """Look at every token, which the first grammar would have to wait for (0.1 to 2 s)."""
        check_installed()
        self._tokenizer()

    def compile(
        self, grammar: Grammar, is_wanted: Callable[[], bool] = lambda: True
    ) -> GrammarMatcher:
        """A matcher at the start of an answer.

        is_wanted: asked now and then while it takes time. Raises PromptError for a grammar that is
        none, that takes too much, or that is not wanted any more.
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
        except (ValueError, RecursionError) as error:  # too deep
            return _Verdict(f"is not usable: {told(str(error))}")
        is_kept = True
        if not is_simple(grammar.kind, grammar.text):
            trial = try_grammar(text, tokens, is_wanted)
            if trial.fault is not None:
                return _Verdict(f"{trial.fault}; use shorter patterns, fewer at a time")
            is_kept = trial.num_bytes <= MAX_KEPT_BYTES
        compiled = self._compiled(grammar, is_kept)
        if compiled.matcher.is_error():
            return _Verdict(f"is not usable: {told(compiled.matcher.get_error())}")
        return _Verdict(None, is_kept)

    def _compiled(self, grammar: Grammar, is_kept: bool) -> Compiled:
        """What is kept of a grammar, or compile it again."""
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
        with panics_refused():
            return LLMatcher(self._tokenizer()[1], text, log_level=0, limits=limits)

    def _tokenizer(self) -> "tuple[GrammarTokens, LLTokenizer]":
        with self._lock:
            if self._loaded is None:
                from llguidance import LLTokenizer

                tokens = GrammarTokens(*self._source)
                wrapper: Any = tokens
                with panics_refused():
                    self._loaded = tokens, LLTokenizer(wrapper, eos_token=tokens.eos_ids or None)
            return self._loaded


def _add(kept: OrderedDict[Grammar, Any], grammar: Grammar, value: Any, most: int) -> None:
    """Keep the last `most`."""
    kept[grammar] = value
    kept.move_to_end(grammar)
    while len(kept) > most:
        kept.popitem(last=False)
