"""Decode the same prompts with several sessions, interleaved so that drift affects all equally."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bita.progress import OnCount, ignore_count
from bita.runtime.session import Prompt, Session

WARM_UP_TOKENS = 8
NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Timed:
    """Decode steps of one or more answers, without the prefill and the token it gives."""

    num_tokens: int  # tokens that the steps gave
    num_steps: int  # decode steps
    milliseconds: float  # of all steps
    token_ids: tuple[int, ...] = ()  # of a single answer, including its first token
    num_from_masks: int = 0  # accepted drafts of masks
    num_from_text: int = 0  # accepted guesses from the text so far

    @property
    def tokens_per_step(self) -> float:
        return self.num_tokens / self.num_steps if self.num_steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        return 1000 * self.num_tokens / self.milliseconds if self.milliseconds else 0.0


def decode_in_turns(
    sessions: Sequence[Session],
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    on_progress: OnCount = ignore_count,
    options: Mapping[str, Any] = NO_OPTIONS,
) -> list[list[Timed]]:
    """Answer each prompt with every session, in an order that is shuffled for each prompt.

    An answer is a few percent faster after one with the same weights. In a fixed rotation that
    would always favour the same sessions.

    Args:
        sessions: Sessions to compare.
        prompts: Prompts to answer.
        max_new_tokens: Limit of each answer.
        on_progress: Called with (done, total) after each prompt.
        options: Options of every answer, as `Session.generate` takes them.

    Returns:
        The timed answers, by session and prompt.
    """
    for session in sessions:
        session.generate(prompts[0], WARM_UP_TOKENS)
    timed: list[list[Timed]] = [[] for _ in sessions]
    order, rng = [*range(len(sessions))], random.Random(0)
    for number, prompt in enumerate(prompts):
        rng.shuffle(order)
        for place in order:
            timed[place].append(_time_answer(sessions[place], prompt, max_new_tokens, options))
        on_progress(number + 1, len(prompts))
    return timed


def together(timed: Sequence[Timed]) -> Timed:
    """Return the sums over several answers."""
    return Timed(
        sum(each.num_tokens for each in timed),
        sum(each.num_steps for each in timed),
        sum(each.milliseconds for each in timed),
        num_from_masks=sum(each.num_from_masks for each in timed),
        num_from_text=sum(each.num_from_text for each in timed),
    )


def _time_answer(
    session: Session, prompt: Prompt, max_new_tokens: int, options: Mapping[str, Any]
) -> Timed:
    session.reset_stats()
    answer = session.generate(prompt, max_new_tokens, **options)
    stats = session.stats
    return Timed(
        num_tokens=stats.num_tokens,
        num_steps=stats.num_steps,
        milliseconds=sum(stats.step_ms),
        token_ids=tuple(answer.token_ids),
        num_from_masks=stats.num_from_masks,
        num_from_text=stats.num_from_text,
    )
