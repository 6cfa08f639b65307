"""What may be asked of an answer, and what is refused."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from bita.errors import PromptError, raise_faults
from bita.runtime.text.grammar import Grammar
from bita.runtime.text.stopping import stop_faults

MOST_LOGPROBS = 20  # per token
SEEDS = 2**64


@dataclass(frozen=True)
class Options:
    """How an answer is made. Raises PromptError that lists every fault.

    The order of what is done to a row of logits: penalties, `logit_bias`, `grammar`, temperature,
    `top_k`, `top_p`, `min_p`. With the defaults decoding is greedy and unchanged.
    """

    max_new_tokens: int = 256  # exact; an answer ends earlier at EOS, a stop, or a full cache
    stop: str | Sequence[str] = ()  # strings that end the answer and are not part of it
    stop_token_ids: Sequence[int] = ()  # tokens that end it, besides the model's own EOS tokens
    ignore_eos: bool = False  # go on behind the model's EOS tokens
    temperature: float = 0.0  # 0: the best token; 1: the model's own distribution
    top_k: int = 0  # the k best tokens, and those equal to the k-th; 0: all
    top_p: float = 1.0  # the best tokens that together have this probability; 1: all
    min_p: float = 0.0  # tokens with this share of the best one's probability; 0: all
    repetition_penalty: float = 1.0  # divides the logits of tokens in prompt and answer; 1: none
    presence_penalty: float = 0.0  # taken off the logits of tokens in the answer; 0: none
    frequency_penalty: float = 0.0  # the same for each time they occur; 0: none
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added to logits, by token id
    seed: int | None = None  # 0 to 2^64 - 1; None: a new one, see `Generation.seed`
    logprobs: int | None = None  # tokens to tell beside each new one, 0 to 20; None: no logprobs
    grammar: Grammar | None = None  # what the whole answer has to match
    timeout_s: float | None = None  # seconds from the start on, waiting included; None: no limit

    def __post_init__(self) -> None:
        raise_faults(PromptError, "options of the answer", [*self._faults()])

    @classmethod
    def of(cls, **given: Any) -> "Options":
        """Options by keywords; unknown ones are refused with the list of known ones."""
        known = [each.name for each in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise PromptError(f"no option {', '.join(unknown)}; there are {', '.join(known)}")
        return cls(**given)

    @property
    def stops(self) -> Sequence[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalizes(self) -> bool:
        neutral = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return neutral != (1, 0, 0)

    @property
    def needs_logits(self) -> bool:
        """Whether more is wanted of a step than its best tokens."""
        return bool(
            not self.is_greedy
            or self.penalizes
            or self.logit_bias
            or self.logprobs is not None
            or self.grammar is not None
        )

    def _faults(self) -> Iterator[str]:
        if not _is_whole(self.max_new_tokens) or self.max_new_tokens < 1:
            yield f"max_new_tokens is {self.max_new_tokens!r}; pass an integer from 1 on"
        yield from (f"stop: {fault}" for fault in stop_faults(self.stops))
        yield from _range_fault("temperature", self.temperature, 0, math.inf)
        yield from _range_fault("top_p", self.top_p, 0, 1, "above 0, up to 1")
        yield from _range_fault("min_p", self.min_p, 0, 1)
        yield from _range_fault(
            "repetition_penalty", self.repetition_penalty, 0, math.inf, "above 0"
        )
        yield from _range_fault("presence_penalty", self.presence_penalty, -math.inf, math.inf)
        yield from _range_fault("frequency_penalty", self.frequency_penalty, -math.inf, math.inf)
        if not _is_whole(self.top_k) or self.top_k < 0:
            yield f"top_k is {self.top_k!r}; pass an integer from 0 on (0: all tokens)"
        if self.seed is not None and not (_is_whole(self.seed) and 0 <= self.seed < SEEDS):
            yield f"seed is {self.seed!r}; pass an integer from 0 to 2^64 - 1"
        if self.logprobs is not None and not (
            _is_whole(self.logprobs) and 0 <= self.logprobs <= MOST_LOGPROBS
        ):
            yield f"logprobs is {self.logprobs!r}; pass an integer from 0 to {MOST_LOGPROBS}"
        if self.timeout_s is not None:
            yield from _range_fault("timeout_s", self.timeout_s, 0, math.inf, "above 0")
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            yield f"grammar is {self.grammar!r:.60}; make one: Grammar.json_schema({{...}})"
        if self.grammar is not None and self.ignore_eos:
            yield "ignore_eos cannot go with a grammar, which ends where it is complete"
        yield from self._bias_faults()
        yield from self._token_faults()

    def _bias_faults(self) -> Iterator[str]:
        if not isinstance(self.logit_bias, Mapping):
            yield f"logit_bias is {self.logit_bias!r:.60}; pass {{token id: number}}"
            return
        for token, bias in self.logit_bias.items():
            if not _is_whole(token) or token < 0:
                yield f"logit_bias: {token!r} is not a token id"
            yield from _range_fault(f"logit_bias of token {token!r}", bias, -math.inf, math.inf)

    def _token_faults(self) -> Iterator[str]:
        ids = self.stop_token_ids
        if not isinstance(ids, Sequence) or not all(_is_whole(each) for each in ids):
            yield f"stop_token_ids is {ids!r:.60}; pass a list of token ids"


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _range_fault(
    name: str, value: Any, low: float, high: float, wanted: str | None = None
) -> Iterator[str]:
    """A fault unless the value is a finite number in [low, high], or above low if `wanted` is given
    (which says so).
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    above = is_number and math.isfinite(value) and (low < value if wanted else low <= value)
    if above and value <= high:
        return
    told = wanted or (f"{low:g} to {high:g}" if math.isfinite(high) else f"from {low:g} on")
    yield f"{name} is {value!r}; pass a finite number{'' if low == -math.inf else ' ' + told}"
