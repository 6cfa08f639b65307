"""Measure what drafts gain on one prompt: its answer decoded plainly and with drafts, in turn."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from bita.calibration.turns import Timed, decode_in_turns, together
from bita.progress import OnCount, ignore_count
from bita.runtime.session import Prompt, Session
from bita.tree import Tree

ROUNDS = 5  # of both; the medians tolerate two that were disturbed


@dataclass(frozen=True)
class DraftGain:
    """Answers to one prompt, decoded alternately without and with drafts."""

    plain: tuple[Timed, ...]  # one per round
    drafted: tuple[Timed, ...]  # one per round

    @property
    def plain_speed(self) -> float:
        """Median tokens per second of plain decoding."""
        return median(each.tokens_per_second for each in self.plain)

    @property
    def drafted_speed(self) -> float:
        """Median tokens per second with drafts."""
        return median(each.tokens_per_second for each in self.drafted)

    @property
    def ratio(self) -> float:
        """Speed with drafts over that of plain decoding; 0.0 if no answer has a decode step."""
        return self.drafted_speed / self.plain_speed if self.plain_speed else 0.0

    @property
    def num_tokens(self) -> int:
        """Tokens of the plain answer."""
        return len(self.plain[0].token_ids)

    @property
    def parting(self) -> int | None:
        """Index of the first new token at which any answer differs; None if all are the same."""
        expected = self.plain[0].token_ids
        places = [_parting(expected, each.token_ids) for each in (*self.plain, *self.drafted)]
        return min((place for place in places if place is not None), default=None)

    @property
    def per_step(self) -> tuple[float, float]:
        """Accepted drafts per step: those of masks, and guesses from the text so far.

        The model itself adds one token in each step.
        """
        sums = together(self.drafted)
        num_steps = max(sums.num_steps, 1)
        return sums.num_from_masks / num_steps, sums.num_from_text / num_steps


def measure_gain(
    session: Session,
    prompt: Prompt,
    max_new_tokens: int,
    options: Mapping[str, Any],
    rounds: int = ROUNDS,
    on_progress: OnCount = ignore_count,
) -> DraftGain:
    """Answer a prompt `rounds` times, alternately plainly and with the session's trees.

    Plain steps have as many rows as bit-identical texts need (`Session.min_exact_rows`), which is
    one with native operators.

    Args:
        session: Session whose trees are measured.
        prompt: Prompt to answer.
        max_new_tokens: Limit of each answer.
        options: Options of every answer, including a seed if it samples.
        rounds: Answers of each kind.
        on_progress: Called with (done, total) after each round.

    Raises:
        PromptError: if the prompt cannot be used.
    """
    sessions = [session.using(tree=Tree.root_only()), session]
    plain, drafted = decode_in_turns(
        sessions, [prompt] * rounds, max_new_tokens, on_progress, options
    )
    return DraftGain(tuple(plain), tuple(drafted))


def _parting(expected: tuple[int, ...], found: tuple[int, ...]) -> int | None:
    if expected == found:
        return None
    same = zip(expected, found, strict=False)
    length = min(len(expected), len(found))
    return next((place for place, (left, right) in enumerate(same) if left != right), length)
