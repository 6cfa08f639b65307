"""One token sequence, and all that a step of it needs besides the engine."""

from collections.abc import Sequence

from bita.runtime.decoding.chooser import GREEDY, AnyChooser
from bita.runtime.decoding.drafting import Drafts
from bita.runtime.decoding.guard import Guard
from bita.runtime.decoding.guesses import Guesses


class TokenSequence:
    """Prompt and answer so far; what the cache holds of it is the decoder's business.

    token_ids: all but the last are cached when a decode step runs; the last is its root.
    chooser: what takes the tokens that follow.
    guard: what picks smaller trees where its drafts do not pay; None: nothing does.
    is_wanted: whether its cached rows are worth keeping when another sequence takes the cache.
    num_reused: prompt tokens that did not have to be computed; None until the prompt is begun.
    is_plain: whether it is decoded without drafts, as was asked for, or because its step overflowed
    with them.
    num_read: tokens that the cache has held, at the most; those that it lost to others count too.
    were_drafts: for each token of the answer whether it was an accepted draft: 1 or 0.
    num_steps, step_seconds: its decode steps, and the time that they took.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        drafts: Drafts,
        guesses: Guesses | None = None,
        chooser: AnyChooser = GREEDY,
        guard: Guard | None = None,
    ) -> None:
        self.token_ids = list(prompt_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.drafts = drafts
        self.guesses = guesses
        self.chooser = chooser
        self.guard = guard
        self.is_wanted = True
        self.num_reused: int | None = None
        self.is_plain = False
        self.num_read = 0
        self.were_drafts = bytearray()
        self.num_steps = 0
        self.step_seconds = 0.0
        if guesses is not None:
            guesses.extend(self.token_ids)

    @property
    def root(self) -> int:
        return self.token_ids[-1]

    @property
    def has_answer(self) -> bool:
        """Whether the prompt has been read to its end."""
        return len(self.token_ids) > self.num_prompt_tokens

    def count_step(self, seconds: float) -> None:
        """Add a decode step."""
        self.num_steps += 1
        self.step_seconds += seconds

    def extend(self, token_ids: Sequence[int], num_drafts: int = 0) -> None:
        """Add new tokens, the first `num_drafts` of which were accepted drafts."""
        self.were_drafts += b"\1" * num_drafts + bytes(len(token_ids) - num_drafts)
        self.token_ids.extend(token_ids)
        if self.guesses is not None:
            self.guesses.extend(token_ids)
