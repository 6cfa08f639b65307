"""Several ways to decode the same prompts, in turns, so that a drift of the machine hits all."""

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
    """Decode steps of one answer or of several, without the prefill and its token."""

    num_tokens: int  # that the steps gave
    num_steps: int  # decode steps
    milliseconds: float  # of all steps
    token_ids: tuple[int, ...] = ()  # of one answer, its first token included
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
    """[session][prompt]. Another session begins with each prompt.

    options: of every answer, as `Session.generate` takes them.
    """
    for session in sessions:
        session.generate(prompts[0], WARM_UP_TOKENS)
    timed: list[list[Timed]] = [[] for _ in sessions]
    for number, prompt in enumerate(prompts):
        for turn in range(len(sessions)):
            place = (number + turn) % len(sessions)
            timed[place].append(_timed(sessions[place], prompt, max_new_tokens, options))
        on_progress(number + 1, len(prompts))
    return timed


def together(timed: Sequence[Timed]) -> Timed:
    """The sums of several answers."""
    return Timed(
        sum(each.num_tokens for each in timed),
        sum(each.num_steps for each in timed),
        sum(each.milliseconds for each in timed),
        num_from_masks=sum(each.num_from_masks for each in timed),
        num_from_text=sum(each.num_from_text for each in timed),
    )


def _timed(
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
