"""An answer in progress."""

from collections.abc import Callable, Iterator, Sequence
from time import monotonic

from bita.runtime.decoding.chooser import TokenLogprob
from bita.runtime.decoding.sequence import TokenSequence
from bita.runtime.decoding.tree_decoder import TreeDecoder
from bita.runtime.text.stopping import FinishReason, StopRule
from bita.runtime.turns import Turns


class Generation(Iterator[str]):
    """An answer in progress; iterate over it to get pieces of text.

    Several answers of one engine may be iterated over alternately or in several threads; each is
    the same as if it ran alone. Threads that want a step at the same time share it where the
    backend supports that (native operators). An answer that had to leave the cache is put back,
    without a copy where the cache has pages, or recomputed if it was not kept.

    Attributes:
        prompt_ids: Tokens of the prompt.
        text: Text so far.
        finish_reason: None while the answer runs, then "eos", "stop" (a stop string or token),
            "grammar" (complete, nothing can follow), "length" (`max_new_tokens`), "capacity" (the
            cache is full), "timeout" or "cancelled".
        error: The error that ended the answer, or None.
        seed: Seed with which the same answer can be generated again.
        decoder: The decoder that runs its steps.
        sequence: Its tokens, as the decoder sees them.
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
        """Prepare an answer; the first step runs when it is asked for text.

        Args:
            turns: Runs its steps.
            decoder: Decodes its tokens.
            sequence: Its prompt, ready to be read.
            rule: Decides where it ends.
            seed: Seed of its draws.
            timeout_s: Seconds until it is ended, including time spent waiting. None: no limit.
            is_kept: Whether to keep its cached rows after the end.
            on_end: Called with the answer when it has ended.
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
        """The tokens so far, including an EOS at the end."""
        return self._rule.token_ids

    @property
    def num_text_tokens(self) -> int:
        """Number of `token_ids`, not counting an EOS or stop token at the end."""
        return len(self.token_ids) - self._rule.ended_at_token

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """Log-probabilities of each of `token_ids`; empty unless the option `logprobs` is set."""
        return [*self.sequence.chooser.logprobs[: len(self.token_ids)]]

    @property
    def text_ends(self) -> Sequence[int]:
        """Offset, in the text of all tokens, at which the text of each of `token_ids` ends.

        A token that completes no character ends where it begins. `text` may be shorter, because it
        is cut before a stop string.
        """
        return self._rule.text_ends

    @property
    def were_drafts(self) -> Sequence[int]:
        """A flag for each of `token_ids`: 1 if it was an accepted draft, else 0."""
        return self.sequence.were_drafts[: len(self.token_ids)]

    @property
    def num_steps(self) -> int:
        """Decode steps so far. The first token is not counted: the prefill's last step emits it."""
        return self.sequence.num_steps

    @property
    def step_seconds(self) -> float:
        """Total time of the decode steps."""
        return self.sequence.step_seconds

    @property
    def num_reused(self) -> int:
        """Prompt tokens that were already in the cache."""
        return self.sequence.num_reused or 0

    def cancel(self) -> None:
        """End the answer before its next step; safe to call from another thread or a signal."""
        self._is_cancelled = True

    def __next__(self) -> str:
        """Run one step and return the text it added.

        The text is "" during a long prefill, and while a character or a possible stop string is
        incomplete. Rows that the cache has lost to other texts are recomputed first, in additional
        steps, so that every call makes progress.

        Raises:
            PromptError: if the grammar becomes too complex. The answer has then ended.
            EngineError: if the step fails. The answer has then ended.
        """
        if self.has_ended:
            raise StopIteration
        known = len(self.text)
        self._serve(self._turns.step)
        return self.text[known:]

    def run(self) -> "Generation":
        """Run to the end and return the answer itself; raises what `next` raises."""
        if not self.has_ended:
            self._serve(self._turns.run)
        return self

    def _serve(self, serve: "Callable[[Generation], None]") -> None:
        try:
            serve(self)
        except BaseException:
            self._finish("cancelled")
            raise
        if self.error is not None:
            raise self.error

    @property
    def has_ended(self) -> bool:
        """Whether the answer has ended."""
        return self.finish_reason is not None

    def patience(self) -> float:
        """Return how many seconds the answer may wait for the engine; -1: no limit."""
        if self._ends_at is None:
            return -1
        return max(self._ends_at - monotonic(), 0)

    def wants_step(self) -> bool:
        """Return whether to run another step; if not, the answer ends. Called by `Turns`."""
        reason = self._reason_to_end()
        if reason is not None:
            self._finish(reason)
        return reason is None

    def take(self, tokens: Sequence[int]) -> None:
        """Add the tokens that a step emitted. Called by `Turns`."""
        num_before = len(self.token_ids)
        for token in tokens:
            self._rule.feed(token)
        if self.sequence.num_steps:  # the prefill's token is not counted
            self.decoder.stats.num_tokens += len(self.token_ids) - num_before
        if self._rule.finish_reason is not None:
            self._finish(self._rule.finish_reason)
        elif self.sequence.chooser.matches_grammar:
            self._finish("grammar")
        else:
            self.text += self._rule.take_text()

    def fail(self, error: BaseException) -> None:
        """End with an error, which is raised in the thread that iterates. Called by `Turns`."""
        self.error = error
        self._finish("cancelled")

    def expire(self) -> None:
        """End because the time limit has passed. Called by `Turns`."""
        self._finish("timeout")

    def _reason_to_end(self) -> FinishReason | None:
        """Return the reason not to run another step; None: run it."""
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
