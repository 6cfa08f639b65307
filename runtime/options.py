"""The options of an answer and their valid ranges.

Every number has a finite range. Even with all numbers at their limits, no sum or product over a
row of logits overflows float32, and no timeout overflows the clock.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any

from bita.errors import PromptError, raise_faults
from bita.json_values import shown
from bita.runtime.text.call_rule import CallRule
from bita.runtime.text.grammar import Grammar
from bita.runtime.text.stopping import stop_faults

MAX_LOGPROBS = 20  # per token
SEEDS = 2**64
MIN_TEMPERATURE = 1e-5  # below it decoding is greedy: float32 is too coarse for a draw
MAX_TEMPERATURE = 1e30  # fits float32; tokens are equally probable long before
MAX_PENALTY = 1e6  # subtracted for each occurrence of a token
MAX_REPETITION_PENALTY = 1e3  # the minimum is its inverse
MAX_BIAS = 1e9  # exceeds every penalty, so that a forbidden token stays forbidden
MAX_TOP_K = MAX_NEW_TOKENS = 2**63 - 1
MAX_TIMEOUT_S = 4e6  # 46 days; some systems' clocks cannot represent much more
MAX_BIAS_FAULTS = 3  # listed in one error
LARGE_BIAS, LARGE_PENALTY = 1e3, 16.0  # above these, adding in float32 would lose the logits


@dataclass(frozen=True)
class Options:
    """Options of an answer. With the defaults decoding is greedy and uses the logits unchanged.

    A row of logits is processed in this order: penalties, `logit_bias`, `grammar`, `temperature`,
    `top_k`, `top_p`, `min_p`.

    Raises:
        PromptError: if an option is invalid; the message lists every fault.
    """

    max_new_tokens: int = 256  # the limit; EOS, a stop or a full cache ends the answer earlier
    stop: str | Sequence[str] = ()  # strings that end the answer and are not part of it
    stop_token_ids: Sequence[int] = ()  # tokens that end it, in addition to the model's EOS tokens
    ignore_eos: bool = False  # continue after the model's EOS tokens
    temperature: float = 0.0  # below 1e-5: greedy; 1: the model's own distribution; at most 1e30
    top_k: int = 0  # keep the k best tokens, and any equal to the k-th; 0: all
    top_p: float = 1.0  # keep the best tokens that together have this probability; 1: all
    min_p: float = 0.0  # keep tokens with this fraction of the best one's probability; 0: all
    repetition_penalty: float = 1.0  # divides logits of tokens in prompt and answer; 1e-3 to 1e3
    presence_penalty: float = 0.0  # subtracted from logits of tokens in the answer; -1e6 to 1e6
    frequency_penalty: float = 0.0  # subtracted for each occurrence in the answer; -1e6 to 1e6
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added, by token id; to ±1e9
    seed: int | None = None  # 0 to 2^64 - 1; None: a random one, see `Generation.seed`
    logprobs: int | None = None  # most probable tokens to list, 0 to 20; None: no logprobs
    grammar: Grammar | None = None  # must match the whole answer; None: unconstrained
    calls: CallRule | None = None  # constrains a call once it begins in a free answer; None: none
    shown_token_ids: Sequence[int] = ()  # special tokens that are part of the answer's text
    timeout_s: float | None = None  # seconds including waiting, at most 4e6; None: no limit

    def __post_init__(self) -> None:
        raise_faults(PromptError, "options of the answer", [*self._faults()])

    @classmethod
    def of(cls, **given: Any) -> "Options":
        """Return options from keywords; PromptError for unknown ones lists the known ones."""
        known = [each.name for each in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            names = ", ".join(unknown)
            raise PromptError(f"there is no option {names:.200}; use {', '.join(known)}")
        return cls(**given)

    @property
    def stops(self) -> Sequence[str]:
        """The stop strings as a sequence."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def is_greedy(self) -> bool:
        """Whether the best token is always taken, without a draw."""
        return self.temperature < MIN_TEMPERATURE

    @property
    def penalizes(self) -> bool:
        """Whether a penalty differs from its neutral value."""
        neutral = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return neutral != (1, 0, 0)

    @property
    def needs_logits(self) -> bool:
        """Whether a step must return logits, not only its best tokens."""
        return bool(
            not self.is_greedy
            or self.penalizes
            or self.logit_bias
            or self.logprobs is not None
            or self.grammar is not None
        )

    @property
    def has_large_numbers(self) -> bool:
        """Whether biases and penalties are so large that they must be added in float64."""
        return (
            max(abs(self.presence_penalty), abs(self.frequency_penalty)) > LARGE_PENALTY
            or max(map(abs, self.logit_bias.values()), default=0) > LARGE_BIAS
        )

    def _faults(self) -> Iterator[str]:
        yield from _whole_fault("max_new_tokens", self.max_new_tokens, 1, MAX_NEW_TOKENS)
        yield from (f"stop: {fault}" for fault in stop_faults(self.stops))
        yield from _range_fault("temperature", self.temperature, 0, MAX_TEMPERATURE)
        yield from _range_fault("top_p", self.top_p, 0, 1, excludes_low=True)
        yield from _range_fault("min_p", self.min_p, 0, 1)
        least = 1 / MAX_REPETITION_PENALTY
        penalty = self.repetition_penalty
        yield from _range_fault("repetition_penalty", penalty, least, MAX_REPETITION_PENALTY)
        for name in ("presence_penalty", "frequency_penalty"):
            yield from _range_fault(name, getattr(self, name), -MAX_PENALTY, MAX_PENALTY)
        yield from _whole_fault("top_k", self.top_k, 0, MAX_TOP_K, " (0: all tokens)")
        if self.seed is not None and not (_is_whole(self.seed) and 0 <= self.seed < SEEDS):
            yield f"seed is {shown(self.seed)}; pass an integer from 0 to 2^64 - 1"
        if self.logprobs is not None and not (
            _is_whole(self.logprobs) and 0 <= self.logprobs <= MAX_LOGPROBS
        ):
            yield f"logprobs is {shown(self.logprobs)}; pass an integer from 0 to {MAX_LOGPROBS}"
        if self.timeout_s is not None:
            yield from _range_fault(
                "timeout_s", self.timeout_s, 0, MAX_TIMEOUT_S, excludes_low=True
            )
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            yield f"grammar is {shown(self.grammar)}; make one: Grammar.json_schema({{...}})"
        if self.grammar is not None and self.ignore_eos:
            yield "ignore_eos cannot be combined with a grammar, which ends where it is complete"
        if self.calls is not None and (self.grammar is not None or self.ignore_eos):
            yield "calls cannot be combined with a grammar or ignore_eos; leave one of them out"
        yield from islice(self._bias_faults(), MAX_BIAS_FAULTS)
        yield from self._token_faults()

    def _bias_faults(self) -> Iterator[str]:
        if not isinstance(self.logit_bias, Mapping):
            yield f"logit_bias is {shown(self.logit_bias)}; pass {{token id: number}}"
            return
        for token, bias in self.logit_bias.items():
            if not _is_whole(token) or token < 0:
                yield f"logit_bias: {shown(token)} is not a token id"
            elif not _is_number(bias) or not -MAX_BIAS <= bias <= MAX_BIAS:
                name = f"logit_bias of token {shown(token)}"
                yield from _range_fault(name, bias, -MAX_BIAS, MAX_BIAS)

    def _token_faults(self) -> Iterator[str]:
        ids = self.stop_token_ids
        if not isinstance(ids, Sequence) or not all(_is_whole(each) for each in ids):
            yield f"stop_token_ids is {shown(ids)}; pass a list of token ids"


def new_seed() -> int:
    """Return a random seed."""
    return secrets.randbelow(SEEDS)


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole_fault(name: str, value: Any, least: int, most: int, more: str = "") -> Iterator[str]:
    """Yield a fault unless the value is an integer from `least` to `most`."""
    if _is_whole(value) and least <= value <= most:
        return
    yield f"{name} is {shown(value)}; pass an integer from {least} on{more}, at most 2^63 - 1"


def _range_fault(
    name: str, value: Any, low: float, high: float, excludes_low: bool = False
) -> Iterator[str]:
    """Yield a fault unless the value is a number from `low` to `high`; NaN and bool are not."""
    # Python compares an integer of any size with a float exactly
    if _is_number(value) and low <= value <= high and not (excludes_low and value == low):
        return
    span = f"above {low:g}, up to {high:g}" if excludes_low else f"from {low:g} to {high:g}"
    yield f"{name} is {shown(value)}; pass a finite number {span}"
