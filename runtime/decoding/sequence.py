"""A token sequence, with all the state that its steps need besides the engine."""

from collections.abc import Sequence

from bita.runtime.decoding.chooser import GREEDY, AnyChooser
from bita.runtime.decoding.drafting import Drafts
from bita.runtime.decoding.guard import Guard
from bita.runtime.decoding.guesses import Guesses


class TokenSequence:
    """Prompt and answer so far. The decoder manages the cached rows.

    token_ids: all but the last are cached when a decode step runs; the last is the step's root.
    chooser: chooses the tokens of the answer.
    guard: picks smaller trees where drafts do not pay. None: trees are never made smaller.
    is_wanted: whether to keep its cached rows when another sequence takes the cache.
    num_reused: prompt tokens that were already cached; None until the prompt is begun.
    is_plain: whether it is decoded without drafts, by request or because a step overflowed.
    num_read: maximum number of its tokens that have been in the cache.
    were_drafts: 1 for each token of the answer that was an accepted draft, else 0.
    num_steps, step_seconds: number and total time of its decode steps.
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
        """The last token, which is the root of the next tree."""
        return self.token_ids[-1]

    @property
    def has_answer(self) -> bool:
        """Whether the answer has a token, so that the prompt has been read."""
        return len(self.token_ids) > self.num_prompt_tokens

    def count_step(self, seconds: float) -> None:
        """Count a decode step."""
        self.num_steps += 1
        self.step_seconds += seconds

    def extend(self, token_ids: Sequence[int], num_drafts: int = 0) -> None:
        """Append tokens, the first `num_drafts` of which were accepted drafts."""
        self.were_drafts += b"\1" * num_drafts + bytes(len(token_ids) - num_drafts)
        self.token_ids.extend(token_ids)
        if self.guesses is not None:
            self.guesses.extend(token_ids)
