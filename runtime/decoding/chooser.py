"""Choose the token that follows each row of an accepted path, in the order of the path.

Only rows on the path are looked at, so a choice depends on the same state (penalties, the grammar's
state, the position) as in plain decoding.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from bita.runtime.backends.backend import StepResults
from bita.runtime.decoding.sampling import Draws, best_tokens, drawn_place, log_partition
from bita.runtime.decoding.soundness import check_logits
from bita.runtime.options import Options
from bita.runtime.text.call_rule import CallWatch
from bita.runtime.text.grammar import GrammarMatcher
from bita.tensors import Float32Array, Float64Array, Int64Array


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability under the model, before any option is applied.

    Attributes:
        token_id: Id of the token.
        logprob: Natural logarithm of its probability.
        best: Id and log-probability of the most probable tokens at its position, best first.
    """

    token_id: int
    logprob: float
    best: tuple[tuple[int, float], ...]


class GreedyChooser:
    """Chooses the best token of each row, which a step returns without its logits."""

    needs_logits = False
    matches_grammar = False
    logprobs: tuple[TokenLogprob, ...] = ()

    def choices(self, step: StepResults) -> Callable[[int], int]:
        """Return a function from an output row of a finished step to the token that follows it."""
        best: list[int] = step.top_ids[:, 0].tolist()
        return best.__getitem__

    def has_ended(self) -> bool:
        """Return False; the stop rule cuts an answer that ends."""
        return False

    def forced(self) -> list[int]:
        """Return no tokens: any token may follow."""
        return []

    def close(self) -> None:
        """Do nothing; there is no memory to free."""


class Chooser:
    """Makes the choices of one answer that needs more than the best tokens.

    prompt_ids: tokens of its prompt.
    eos_ids: EOS and stop tokens, which end the answer.
    choice: number of the answer among several to one prompt.
    matcher: grammar matcher for the whole answer.
    calls: constrains calls in an otherwise free answer.
    """

    def __init__(
        self,
        options: Options,
        prompt_ids: Sequence[int],
        eos_ids: Collection[int],
        seed: int,
        choice: int = 0,
        matcher: GrammarMatcher | None = None,
        calls: "CallSwitch | None" = None,
    ) -> None:
        self.logprobs: list[TokenLogprob] = []
        self._has_ended = False
        self._pauses = False  # whether this step's walk must stop here
        self._is_complete = False
        self._calls = calls
        self._options = options
        self._eos_ids = frozenset(eos_ids)
        self._draws = Draws(seed, choice, len(prompt_ids))
        self._matcher = matcher
        self._penalties = Penalties(options, prompt_ids) if options.penalizes else None
        self._bias_ids = np.fromiter(options.logit_bias, np.int64)
        self._bias = np.fromiter(options.logit_bias.values(), np.float32)
        self._is_wide = options.has_large_numbers
        self._ends_freely = options.grammar is not None and options.grammar.kind == "calls"

    @property
    def needs_logits(self) -> bool:
        """Whether the next step must return logits; this changes where a call begins or ends."""
        return self._matcher is not None or self._options.needs_logits

    @property
    def matches_grammar(self) -> bool:
        """Whether a grammar ended the answer."""
        return self._is_complete

    def choices(self, step: StepResults) -> Callable[[int], int]:
        """Return a function from an output row of a finished step to the token that follows it.

        It must be called in the order of the accepted path.
        """
        self._pauses = False
        logits = step.logits if self.needs_logits else None
        if logits is not None:
            return lambda row: self.choose(logits[row])
        assert not self.needs_logits
        best: list[int] = step.top_ids[:, 0].tolist()
        return lambda row: self._take(best[row])

    def has_ended(self) -> bool:
        """Return whether the path must end after the last choice.

        That is an EOS or stop token, a token that completes the grammar, or one that changes
        `needs_logits`.
        """
        return self._has_ended or self._pauses

    def choose(self, logits: Float32Array) -> int:
        """Return the token that follows a row of logits, [V], which is overwritten.

        Raises EngineError if the logits are not finite.
        """
        check_logits(logits)
        options = self._options
        own = None if options.logprobs is None else logits.copy()
        ids = None if self._matcher is None else self._matcher.allowed()
        end = None if ids is None or not self._ends_freely else self._end_in(ids)
        if ids is None or end is not None:
            token = self._choose_place(self._adjust(logits, None))
            if end is not None and ids is not None and not _holds(ids, token):
                token = end
        else:
            token = int(ids[self._choose_place(self._adjust(logits, ids))])
        if own is not None:
            self.logprobs.append(self._describe(own, token))
        return self._take(token)

    def _end_in(self, ids: Int64Array) -> int | None:
        """Return the first end token if it is among several allowed tokens.

        Calls may end there. They do unless the model's own choice begins another call: restricted
        to the few allowed tokens, it would never end.
        """
        if len(ids) == 1:
            return None
        return next((token for token in sorted(self._eos_ids) if _holds(ids, token)), None)

    def _choose_place(self, logits: Float32Array) -> int:
        """Return the position of the chosen token among these logits."""
        if self._options.is_greedy:
            return int(logits.argmax())
        return drawn_place(logits, self._options, self._draws.next())

    def _adjust(self, logits: Float32Array, ids: Int64Array | None) -> Float32Array:
        """Apply penalties and biases, then return the logits of `ids` (None: of all tokens).

        Large numbers are added in float64; the result is then relative to the best token.
        """
        row = logits.astype(np.float64) if self._is_wide else logits
        if self._penalties is not None:
            self._penalties.apply(row)
        if len(self._bias_ids):
            row[self._bias_ids] += self._bias
        kept = row if ids is None else row[ids]
        if self._is_wide:
            kept = kept - kept.max()
        return kept.astype(np.float32, copy=False)

    def forced(self) -> list[int]:
        """Return the tokens that must follow, because the grammar allows no others."""
        return [] if self._matcher is None or self._has_ended else self._matcher.forced()

    def close(self) -> None:
        """Free the grammar's memory. No choice may follow."""
        if self._matcher is not None:
            self._matcher.close()

    def _take(self, token: int) -> int:
        """Count a chosen token, and return it."""
        if self._penalties is not None:
            self._penalties.count(token)
        self._has_ended = token in self._eos_ids
        if self._matcher is not None:
            self._follow(self._matcher, token)
        elif self._calls is not None and not self._has_ended:
            self._matcher = self._calls.push(token)
            self._pauses = self._matcher is not None
        return token

    def _follow(self, matcher: GrammarMatcher, token: int) -> None:
        """Advance the grammar; after a call the answer may be free again."""
        matcher.take(token)
        if not matcher.is_complete:
            return
        if self._calls is not None and self._calls.resume() and not self._has_ended:
            matcher.close()
            self._matcher, self._pauses = None, True
        else:
            self._is_complete = self._has_ended = True

    def _describe(self, logits: Float32Array, token: int) -> TokenLogprob:
        total = log_partition(logits)
        ids = best_tokens(logits, self._options.logprobs or 0)
        best = tuple((each, float(logits[each]) - total) for each in ids)
        return TokenLogprob(token, float(logits[token]) - total, best)


def _holds(ids: Int64Array, token: int) -> bool:
    """Return whether a token is among ascending ids."""
    place = int(ids.searchsorted(token))
    return place < len(ids) and int(ids[place]) == token


class CallSwitch:
    """Constrains an answer from the beginning of a call to its end.

    matcher: returns a new matcher at the start of the rule's grammar.
    """

    def __init__(self, watch: CallWatch, matcher: Callable[[], GrammarMatcher]) -> None:
        self._watch = watch
        self._make = matcher

    def push(self, token: int) -> GrammarMatcher | None:
        """Take a token of a free answer; if it begins a call, return the call's matcher.

        A call whose beginning does not fit the grammar is left unconstrained.
        """
        rest = self._watch.push(token)
        if rest is None:
            return None
        matcher = self._make()
        if matcher.take_text(rest):
            return matcher
        matcher.close()
        return None

    def resume(self) -> bool:
        """Note the end of a call; return whether the answer may continue with another one."""
        self._watch.resume()
        return self._watch.rule.may_repeat


AnyChooser = GreedyChooser | Chooser
GREEDY = GreedyChooser()  # has no state, so all answers share it


class Penalties:
    """Lowers the logits of tokens that already occur in the text.

    The repetition penalty considers prompt and answer; it divides positive logits and multiplies
    negative ones (Keskar 2019, CTRL). Presence and frequency penalties consider only the answer
    and are subtracted (OpenAI's API).
    """

    def __init__(self, options: Options, prompt_ids: Sequence[int]) -> None:
        self._options = options
        seen = prompt_ids if options.repetition_penalty != 1 else ()
        self._place = {token: place for place, token in enumerate(dict.fromkeys(seen))}
        size = len(self._place)
        self._ids = np.zeros(2 * size + 64, np.int64)
        self._ids[:size] = list(self._place)
        self._counts = np.zeros(len(self._ids), np.float32)  # in the answer

    def apply(self, logits: Float32Array | Float64Array) -> None:
        """Change a row, [V], in place. The cost is proportional to the distinct tokens seen."""
        options, size = self._options, len(self._place)
        ids, counts = self._ids[:size], self._counts[:size]
        values = logits[ids]
        if options.repetition_penalty != 1:
            factor = np.float32(options.repetition_penalty)
            values = np.where(values > 0, values / factor, values * factor)
        values -= np.float32(options.presence_penalty) * (counts > 0)
        values -= np.float32(options.frequency_penalty) * counts
        logits[ids] = values

    def count(self, token: int) -> None:
        """Count a token of the answer."""
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.resize(self._ids, 2 * place)
            self._counts = np.concatenate([self._counts, np.zeros(place, np.float32)])
        self._ids[place] = token
        self._counts[place] += 1
