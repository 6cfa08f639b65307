"""What drafts gain on one prompt: the same answer decoded plainly and with drafts, in turns."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from bita.calibration.turns import Timed, decode_in_turns, together
from bita.progress import OnCount, ignore_count
from bita.runtime.session import Prompt, Session
from bita.tree import Tree

ROUNDS = 5  # of both; the medians then bear two that were disturbed


@dataclass(frozen=True)
class DraftGain:
    """Answers to one prompt, decoded in turns."""

    plain: tuple[Timed, ...]  # of each round
    drafted: tuple[Timed, ...]

    @property
    def plain_speed(self) -> float:
        """Tokens per second of plain decoding, the median of the rounds."""
        return median(each.tokens_per_second for each in self.plain)

    @property
    def drafted_speed(self) -> float:
        """Tokens per second with drafts, the median of the rounds."""
        return median(each.tokens_per_second for each in self.drafted)

    @property
    def ratio(self) -> float:
        """How many times as fast drafts are; 0.0 if no answer has a decode step."""
        return self.drafted_speed / self.plain_speed if self.plain_speed else 0.0

    @property
    def num_tokens(self) -> int:
        """Tokens of the plain answer."""
        return len(self.plain[0].token_ids)

    @property
    def parting(self) -> int | None:
        """The first new token, from 0, in which any answer differs from the plain one; None if they
        are all the same.
        """
        expected = self.plain[0].token_ids
        places = [_parting(expected, each.token_ids) for each in (*self.plain, *self.drafted)]
        return min((place for place in places if place is not None), default=None)

    @property
    def per_step(self) -> tuple[float, float]:
        """Accepted drafts per step with drafts: those of masks, and guesses from the text so far.

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
    """Answer a prompt `rounds` times plainly and with the session's trees, in turns.

    Plain steps have as many rows as bit-identical texts need (`Session.min_exact_rows`: one with
    native operators). options: of every answer, with a seed if it samples. Raises PromptError.
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
