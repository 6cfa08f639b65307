"""Chooses the token that follows a row of a step, one after the other along an accepted path.

Rows are looked at only where the text goes on, so what a choice depends on (penalties, the
grammar's state, the position) is what it depends on in plain decoding.
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
    """A token of an answer and how probable the model itself finds it, before any option.

    logprob: natural logarithm. best: the most probable tokens at its place, best first.
    """

    token_id: int
    logprob: float
    best: tuple[tuple[int, float], ...]


class GreedyChooser:
    """Takes the best token of each row, which a step gives without its logits."""

    needs_logits = False
    matches_grammar = False
    logprobs: tuple[TokenLogprob, ...] = ()

    def choices(self, step: StepResults) -> Callable[[int], int]:
        """The token that follows an output row of a step that has run."""
        best: list[int] = step.top_ids[:, 0].tolist()
        return best.__getitem__

    def has_ended(self) -> bool:
        """Never: an answer that ends is cut by the stop rule."""
        return False

    def forced(self) -> list[int]:
        """None: anything may follow."""
        return []

    def close(self) -> None:
        """Nothing: it holds no memory."""


class Chooser:
    """Makes the choices of one answer that asks for more than the best tokens.

    prompt_ids: of its prompt.
    eos_ids: tokens that end the answer, EOS or stop.
    choice: number of the answer among several to the prompt.
    matcher: of the whole answer.
    calls: what makes a call of an answer that is free until then.
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
        self._pauses = False  # whether the walk of this step has to stop here
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
        """Whether the next step has to give them; this changes where a call begins or ends."""
        return self._matcher is not None or self._options.needs_logits

    @property
    def matches_grammar(self) -> bool:
        """Whether a grammar ended the answer."""
        return self._is_complete

    def choices(self, step: StepResults) -> Callable[[int], int]:
        """The token that follows an output row of a step that has run; ask along the path."""
        self._pauses = False
        logits = step.logits if self.needs_logits else None
        if logits is not None:
            return lambda row: self.choose(logits[row])
        assert not self.needs_logits
        best: list[int] = step.top_ids[:, 0].tolist()
        return lambda row: self._taken(best[row])

    def has_ended(self) -> bool:
        """Whether the last choice was an EOS or stop token, completed the grammar, or changed what
        the next step has to give.
        """
        return self._has_ended or self._pauses

    def choose(self, logits: Float32Array) -> int:
        """The token that follows a row of logits, [V], which is overwritten.

        Raises EngineError if they are not numbers.
        """
        check_logits(logits)
        options = self._options
        own = None if options.logprobs is None else logits.copy()
        ids = None if self._matcher is None else self._matcher.allowed()
        end = None if ids is None or not self._ends_freely else self._end_in(ids)
        if ids is None or end is not None:
            token = self._place(self._changed(logits, None))
            if end is not None and ids is not None and not _holds(ids, token):
                token = end
        else:
            token = int(ids[self._place(self._changed(logits, ids))])
        if own is not None:
            self.logprobs.append(self._described(own, token))
        return self._taken(token)

    def _end_in(self, ids: Int64Array) -> int | None:
        """The first end among tokens that are allowed beside others. Calls may end there, and they
        do unless the model of itself begins another one: among few tokens it would go on and on.
        """
        if len(ids) == 1:
            return None
        return next((token for token in sorted(self._eos_ids) if _holds(ids, token)), None)

    def _place(self, logits: Float32Array) -> int:
        """The place of the token that is taken among these."""
        if self._options.is_greedy:
            return int(logits.argmax())
        return drawn_place(logits, self._options, self._draws.next())

    def _changed(self, logits: Float32Array, ids: Int64Array | None) -> Float32Array:
        """Penalties and biases, then the logits of `ids` alone (None: of all tokens).

        Large numbers are added in float64, and the result is relative to the best token.
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
        """The tokens that have to follow, because the grammar allows no others."""
        return [] if self._matcher is None or self._has_ended else self._matcher.forced()

    def close(self) -> None:
        """Give the grammar's memory back; nothing is chosen any more."""
        if self._matcher is not None:
            self._matcher.close()

    def _taken(self, token: int) -> int:
        """Count a token that was chosen, and return it."""
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
        """Continue in the grammar; after a call the answer may be free again."""
        matcher.take(token)
        if not matcher.is_complete:
            return
        if self._calls is not None and self._calls.resume() and not self._has_ended:
            matcher.close()
            self._matcher, self._pauses = None, True
        else:
            self._is_complete = self._has_ended = True

    def _described(self, logits: Float32Array, token: int) -> TokenLogprob:
        total = log_partition(logits)
        best = best_tokens(logits, self._options.logprobs or 0)
        beside = tuple((each, float(logits[each]) - total) for each in best)
        return TokenLogprob(token, float(logits[token]) - total, beside)


def _holds(ids: Int64Array, token: int) -> bool:
    """Whether ascending ids have one of them."""
    place = int(ids.searchsorted(token))
    return place < len(ids) and int(ids[place]) == token


class CallSwitch:
    """Constrains an answer from where a call begins to where the call ends.

    matcher: makes one at the start of the rule's grammar.
    """

    def __init__(self, watch: CallWatch, matcher: Callable[[], GrammarMatcher]) -> None:
        self._watch = watch
        self._make = matcher

    def push(self, token: int) -> GrammarMatcher | None:
        """Take a token of a free answer; what constrains those that follow, if a call begins.

        A call whose beginning cannot be continued as the grammar wants is left free.
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
        """A call has ended: whether the answer may continue, and have another one."""
        self._watch.resume()
        return self._watch.rule.may_repeat


AnyChooser = GreedyChooser | Chooser
GREEDY = GreedyChooser()  # has no state, so all answers share it


class Penalties:
    """Takes from the logits of tokens that the text has already.

    The repetition penalty counts prompt and answer, and divides positive logits and multiplies
    negative ones (Keskar 2019, CTRL); presence and frequency penalties count the answer alone, and
    are taken off (OpenAI's API).
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
        """Change a row, [V], in place. Cost: that of the tokens seen."""
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
        """Add a token of the answer."""
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.resize(self._ids, 2 * place)
            self._counts = np.concatenate([self._counts, np.zeros(place, np.float32)])
        self._ids[place] = token
        self._counts[place] += 1
