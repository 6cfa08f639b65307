"""One answer while it is made."""

from collections.abc import Callable, Iterator, Sequence
from time import monotonic

from bita.runtime.decoding.chooser import TokenLogprob
from bita.runtime.decoding.sequence import TokenSequence
from bita.runtime.decoding.tree_decoder import TreeDecoder
from bita.runtime.text.stopping import FinishReason, StopRule
from bita.runtime.turns import Turns


class Generation(Iterator[str]):
    """One answer while it is made: iterate over it for pieces of text.

    text: so far. finish_reason: None while it runs, then "eos", "stop" (a stop string or token),
    "grammar" (complete, nothing can follow), "length" (max_new_tokens), "capacity" (the cache is
    full), "timeout" or "cancelled". error: that ended it, or None. seed: that gives the same answer
    again.

    Several on one engine may be iterated over by turns, or in several threads, and are what they
    are alone. Threads that want a step at the same time share it where the backend can do that
    (native operators). Where an answer had to leave the cache, it is put back without a copy if
    caches have pages, or is computed again if it was not kept.
    """

    def __init__(
        self,
        turns: Turns,
        decoder: TreeDecoder,
        sequence: TokenSequence,
        rule: StopRule,
        seed: int,
        timeout_s: float | None = None,
        is_kept: bool = False,
        on_end: "Callable[[Generation], None]" = lambda generation: None,
    ) -> None:
        """turns: what runs its steps.
        timeout_s: seconds until it ends, waiting included; None: no limit.
        is_kept: whether its cached rows are wanted when it has ended.
        on_end: called with it then.
        """
        self.prompt_ids: Sequence[int] = tuple(sequence.token_ids)
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        self.seed = seed
        self.decoder = decoder
        self.sequence = sequence
        self._turns = turns
        self._rule = rule
        self._ends_at = None if timeout_s is None else monotonic() + timeout_s
        self._is_kept = is_kept
        self._on_end = on_end
        self._is_cancelled = False

    @property
    def token_ids(self) -> list[int]:
        """The tokens kept so far, an EOS at the end included."""
        return self._rule.token_ids

    @property
    def num_text_tokens(self) -> int:
        """Of `token_ids`, all but an EOS or stop token at the end."""
        return len(self.token_ids) - self._rule.ended_at_token

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """Of each of `token_ids`, if the option was given."""
        return [*self.sequence.chooser.logprobs[: len(self.token_ids)]]

    @property
    def text_ends(self) -> Sequence[int]:
        """For each of `token_ids` the place where its text ends in the text of all. A token that
        completes no character ends where it begins; a stop string may end `text` before.
        """
        return self._rule.text_ends

    @property
    def were_drafts(self) -> Sequence[int]:
        """For each of `token_ids`, 1 if it was a draft that a step accepted, else 0."""
        return self.sequence.were_drafts[: len(self.token_ids)]

    @property
    def num_steps(self) -> int:
        """Decode steps so far; the first token comes before them, of the prompt's last step."""
        return self.sequence.num_steps

    @property
    def step_seconds(self) -> float:
        """The time of these steps."""
        return self.sequence.step_seconds

    @property
    def num_reused(self) -> int:
        """Prompt tokens that were in the cache already."""
        return self.sequence.num_reused or 0

    def cancel(self) -> None:
        """End the answer before its next step. May be called from another thread or a signal."""
        self._is_cancelled = True

    def __next__(self) -> str:
        """Run one step and return the text it added.

        That is "" in a long prompt, and while a character or what may be a stop string is not
        complete. What the cache lost of the answer to other texts is computed again before, in
        further steps, so that every call gets further than all before it. Raises PromptError if the
        grammar gets too complex, and EngineError; the answer has ended then.
        """
        if self.has_ended:
            raise StopIteration
        known = len(self.text)
        self._served(self._turns.step)
        return self.text[known:]

    def run(self) -> "Generation":
        """Run to the end."""
        if not self.has_ended:
            self._served(self._turns.run)
        return self

    def _served(self, serve: "Callable[[Generation], None]") -> None:
        try:
            serve(self)
        except BaseException:
            self._finish("cancelled")
            raise
        if self.error is not None:
            raise self.error

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing more to come."""
        return self.finish_reason is not None

    def patience(self) -> float:
        """Seconds that it may wait for the engine; -1 for any time."""
        if self._ends_at is None:
            return -1
        return max(self._ends_at - monotonic(), 0)

    def wants_step(self) -> bool:
        """Whether a step is to follow; ends it if not. Called by `Turns`."""
        reason = self._reason_to_end()
        if reason is not None:
            self._finish(reason)
        return reason is None

    def take(self, tokens: Sequence[int]) -> None:
        """Take what a step emitted. Called by `Turns`."""
        num_before = len(self.token_ids)
        for token in tokens:
            self._rule.feed(token)
        if self.sequence.num_steps:  # else it read the prompt
            self.decoder.stats.num_tokens += len(self.token_ids) - num_before
        if self._rule.finish_reason is not None:
            self._finish(self._rule.finish_reason)
        elif self.sequence.chooser.matches_grammar:
            self._finish("grammar")
        else:
            self.text += self._rule.take_text()

    def fail(self, error: BaseException) -> None:
        """End with an error, which the next call raises. Called by `Turns`."""
        self.error = error
        self._finish("cancelled")

    def expire(self) -> None:
        """End because the time is over. Called by `Turns`."""
        self._finish("timeout")

    def _reason_to_end(self) -> FinishReason | None:
        """Why no step is to follow."""
        if self._is_cancelled:
            return "cancelled"
        if self._ends_at is not None and monotonic() >= self._ends_at:
            return "timeout"
        return "capacity" if self.decoder.is_full(self.sequence) else None

    def _finish(self, reason: FinishReason) -> None:
        if self.has_ended:
            return
        self.finish_reason = reason
        self.sequence.is_wanted = self._is_kept
        self.sequence.chooser.close()
        self.text += self._rule.close()
        self._on_end(self)
