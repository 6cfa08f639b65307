"""One answer while it is made."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from time import monotonic

from bita.runtime.decoding.chooser import TokenLogprob
from bita.runtime.decoding.sequence import TokenSequence
from bita.runtime.decoding.tree_decoder import TreeDecoder
from bita.runtime.text.stopping import FinishReason, StopRule


class Generation(Iterator[str]):
    """One answer while it is made: iterate over it for pieces of text.

    text: so far. finish_reason: None while it runs, then "eos", "stop" (a stop string or token),
    "grammar" (complete, nothing can follow), "length" (max_new_tokens), "capacity" (the cache is
    full), "timeout" or "cancelled". seed: that gives the same answer again.

    Several on one engine may be iterated over by turns, in one thread or in several: a turn has the
    engine for itself, and continues where the answer was. What another text took from the cache is
    put back, without a copy where caches have pages, or computed again within the turn if it was
    not kept; so one answer after the other is fastest.
    """

    def __init__(
        self,
        decoder: TreeDecoder,
        lock: RLock,
        sequence: TokenSequence,
        rule: StopRule,
        seed: int,
        timeout_s: float | None = None,
        is_kept: bool = False,
        on_end: "Callable[[Generation], None]" = lambda generation: None,
    ) -> None:
        """lock: of the engine, held while a step runs.
        timeout_s: seconds until it ends, waiting included; None: no limit.
        is_kept: whether its cached rows are wanted when it has ended.
        on_end: called with it then.
        """
        self.prompt_ids: Sequence[int] = tuple(sequence.token_ids)
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.seed = seed
        self._decoder = decoder
        self._lock = lock
        self._sequence = sequence
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
        return [*self._sequence.chooser.logprobs[: len(self.token_ids)]]

    @property
    def text_ends(self) -> Sequence[int]:
        """Of each of `token_ids`, where its text ends in the text of all of them. A token that
        completes no character ends where it begins; a stop string may end `text` before.
        """
        return self._rule.text_ends

    @property
    def were_drafts(self) -> Sequence[int]:
        """Of each of `token_ids`, whether it was a draft that a step accepted: 1 or 0."""
        return self._sequence.were_drafts[: len(self.token_ids)]

    @property
    def num_steps(self) -> int:
        """Decode steps so far; the first token comes before them, of the prompt's last step."""
        return self._sequence.num_steps

    @property
    def step_seconds(self) -> float:
        """The time of these steps."""
        return self._sequence.step_seconds

    @property
    def num_reused(self) -> int:
        """Prompt tokens that were in the cache already."""
        return self._sequence.num_reused or 0

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
        if self.finish_reason is not None:
            raise StopIteration
        if not self._lock.acquire(timeout=self._patience()):
            return self._finish("timeout")
        try:
            return self._step()
        except BaseException:  # an interrupt can come anywhere: the rows are not to be used
            self._decoder.shared_cache.invalidate()
            self._finish("cancelled")
            raise
        finally:
            self._lock.release()

    def run(self) -> "Generation":
        """Run to the end, with the engine for itself."""
        with self._turn():
            for _ in self:
                pass
        return self

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Hold the engine's lock; yields False if the deadline passes first."""
        if not self._lock.acquire(timeout=self._patience()):
            yield False
            return
        try:
            yield True
        finally:
            self._lock.release()

    def _patience(self) -> float:
        """Seconds that it may wait for the engine; -1 for any time."""
        if self._ends_at is None:
            return -1
        return max(self._ends_at - monotonic(), 0)

    def _step(self) -> str:
        """Run steps until one gets further than the answer has been before."""
        num_read = self._sequence.num_read
        while self._sequence.num_read == num_read:
            reason = self._reason_to_end()
            if reason is not None:
                return self._finish(reason)
            self._run_step()
        if self._rule.finish_reason is not None:
            return self._finish(self._rule.finish_reason)
        if self._sequence.chooser.matches_grammar:
            return self._finish("grammar")
        return self._add(self._rule.take_text())

    def _reason_to_end(self) -> FinishReason | None:
        """Why no step is to follow."""
        if self._is_cancelled:
            return "cancelled"
        if self._ends_at is not None and monotonic() >= self._ends_at:
            return "timeout"
        return "capacity" if self._decoder.is_full(self._sequence) else None

    def _run_step(self) -> None:
        is_decode_step = self._sequence.has_answer  # else it reads the prompt
        num_before = len(self.token_ids)
        for token in self._decoder.step(self._sequence):
            self._rule.feed(token)
        if is_decode_step:
            self._decoder.stats.num_tokens += len(self.token_ids) - num_before

    def _finish(self, reason: FinishReason) -> str:
        self.finish_reason = reason
        self._sequence.is_wanted = self._is_kept
        self._sequence.chooser.close()
        piece = self._add(self._rule.close())
        self._on_end(self)
        return piece

    def _add(self, piece: str) -> str:
        self.text += piece
        return piece
