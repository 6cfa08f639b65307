"""Schedule the steps of an engine among threads and texts.

Threads that want a step at the same time share it: the first thread leads and runs the steps of
all, until its own answer is served; then another thread leads. A lone thread never waits.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Protocol
from weakref import WeakKeyDictionary, ref

from bita.errors import BitaError, EngineError
from bita.runtime.backends.backend import Backend
from bita.runtime.decoding.joint_decoder import JointDecoder
from bita.runtime.decoding.places import Places
from bita.runtime.decoding.sequence import TokenSequence
from bita.runtime.decoding.shared_cache import SharedCache
from bita.runtime.decoding.tree_decoder import TreeDecoder

MAX_TEXTS = 64  # in one step
SLICE_STEPS = 16  # consecutive steps of one text, where a backend cannot run texts together
INTERRUPTED = "the answer was interrupted; ask again"
GATHER_SECONDS = 0.0003  # a step waits this long for threads that took part in the last one


class Answer(Protocol):
    """An answer that takes part in steps; `Generation` is one."""

    decoder: TreeDecoder
    sequence: TokenSequence

    @property
    def has_ended(self) -> bool: ...

    def wants_step(self) -> bool:
        """Return whether to run another step; if not, the answer ends."""

    def take(self, tokens: Sequence[int]) -> None:
        """Add the tokens that a step emitted."""

    def fail(self, error: BaseException) -> None:
        """End with an error."""

    def expire(self) -> None:
        """End because the time limit has passed."""

    def patience(self) -> float:
        """Return how many seconds the answer may wait for the engine; -1: no limit."""


class EngineLock:
    """A reentrant lock that is held while a step runs."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner, self._depth = 0, 0

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds the lock."""
        return self._owner == threading.get_ident()

    def acquire(self, timeout: float = -1) -> bool:
        """Take the lock; return whether that succeeded within `timeout` seconds (-1: no limit)."""
        if not self._lock.acquire(timeout=timeout):
            return False
        self._owner, self._depth = threading.get_ident(), self._depth + 1
        return True

    def release(self) -> None:
        """Release the lock."""
        self._depth -= 1
        if not self._depth:
            self._owner = 0
        self._lock.release()

    def __enter__(self) -> "EngineLock":
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


class _Member:
    """An answer for which a thread waits, until it has made progress or, if `to_end`, has ended.

    wake: notified when the answer is served, or when its thread should lead.
    is_running: whether the answer takes part in the running step.
    """

    def __init__(self, answer: Answer, to_end: bool, mutex: threading.Lock) -> None:
        self.answer = answer
        self.wake = threading.Condition(mutex)
        self.is_running = False
        self._to_end = to_end
        self._num_read = answer.sequence.num_read

    @property
    def is_served(self) -> bool:
        if self.answer.has_ended:
            return True
        return not self._to_end and self.answer.sequence.num_read > self._num_read


class Turns:
    """Runs the steps of one engine.

    places: places of texts that share steps. None: the backend runs one text at a time, so texts
    run alternately, in slices of a few steps.
    """

    def __init__(self, backend: Backend, shared_cache: SharedCache, places: Places | None) -> None:
        self.lock = EngineLock()
        self._backend = backend
        self._shared_cache = shared_cache
        self._places = places
        self._joint: WeakKeyDictionary[TreeDecoder, JointDecoder] = WeakKeyDictionary()
        self._mutex = threading.Lock()  # guards the fields below; held only briefly
        self._joined = threading.Condition(self._mutex)  # notified when a member joins
        self._members: list[_Member] = []
        self._is_led = False  # whether a thread runs the members' steps
        self._expected: set[int] = set()  # ids of the last step's answers that may rejoin
        self._slice: ref[Answer] | None = None  # answer that owns the current slice
        self._num_left = 0  # steps left in the slice

    def step(self, answer: Answer) -> None:
        """Run steps until an answer has got further than ever before."""
        self._serve(_Member(answer, False, self._mutex))

    def run(self, answer: Answer) -> None:
        """Run steps until an answer has ended."""
        self._serve(_Member(answer, True, self._mutex))

    def advance(self, answers: Sequence[Answer]) -> None:
        """Run one step of these answers, or of as many as the backend can run together.

        Earlier answers in the list take precedence. An answer that fails has its `error` set; the
        others are not affected.
        """
        with self.lock:
            wanting = [each for each in answers if self._wants_step(each)]
            by_decoder: dict[TreeDecoder, list[Answer]] = {}
            for answer in wanting:
                by_decoder.setdefault(answer.decoder, []).append(answer)
            for decoder, group in by_decoder.items():
                self._advance(decoder, group)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the engine lock, with the backend's own cache free for another text."""
        with self.lock:
            if self._places is not None:
                self._places.clear_main()
            yield

    def forget(self) -> None:
        """Forget all texts."""
        with self.lock:
            (self._places or self._shared_cache).forget()

    def _serve(self, member: _Member) -> None:
        if self.lock.is_mine:  # the caller holds the engine lock
            while not member.is_served:
                self.advance([member.answer])
            return
        try:
            if self._wait(member):
                self._lead(member)
        except BaseException:
            self._give_up(member)
            raise

    def _wait(self, member: _Member) -> bool:
        """Join the next steps; return whether this thread must lead. If not, it has been served."""
        with self._mutex:
            self._members.append(member)
            self._joined.notify()
            while not member.is_served:
                if not self._is_led:
                    self._is_led = True
                    return True
                seconds = member.answer.patience()
                timed_out = not member.wake.wait(None if seconds < 0 else seconds)
                if timed_out and not member.is_running:
                    member.answer.expire()
            self._leave(member)
            return False

    def _lead(self, member: _Member) -> None:
        """Run the steps of all members until this one is served."""
        try:
            while not member.is_served:
                if not self.lock.acquire(timeout=member.answer.patience()):
                    member.answer.expire()
                    return
                members: list[_Member] = []
                try:
                    members = self._gather()
                    self.advance([each.answer for each in members])
                finally:
                    self.lock.release()
                    self._end_step(members)
        finally:
            with self._mutex:
                self._is_led = False
                self._leave(member)

    def _gather(self) -> list[_Member]:
        """Return the members of the next step, after a short wait for those of the last."""
        ends_at = monotonic() + GATHER_SECONDS
        with self._mutex:
            while self._expected - {id(each.answer) for each in self._members}:
                rest = ends_at - monotonic()
                if rest <= 0:
                    break
                self._joined.wait(rest)
            members = self._members[:MAX_TEXTS]
            for each in members:
                each.is_running = True
        return members

    def _end_step(self, members: Sequence[_Member]) -> None:
        with self._mutex:
            self._expected = {id(each.answer) for each in members if not each.answer.has_ended}
            for each in members:
                each.is_running = False
                if each.is_served:
                    each.wake.notify()

    def _give_up(self, member: _Member) -> None:
        """Leave after an interrupt, once the running step has ended."""
        with self._mutex:
            while member.is_running:
                member.wake.wait(GATHER_SECONDS)
            self._leave(member)

    def _leave(self, member: _Member) -> None:
        """Remove a member; if no thread leads, wake the first remaining one to do so."""
        if member in self._members:
            self._members.remove(member)
        if self._members and not self._is_led:
            self._members[0].wake.notify()

    def _advance(self, decoder: TreeDecoder, group: Sequence[Answer]) -> None:
        if len(group) > 1 and self._places is not None:
            group = group[:MAX_TEXTS]
        else:
            group = [self._next_in_slices(group)]
        try:
            outcomes = self._run_step(decoder, group)
        except BaseException:  # an interrupt at any point leaves rows and answers incomplete
            (self._places or self._shared_cache).invalidate()
            for answer in group:
                answer.fail(EngineError(INTERRUPTED))
            raise
        interrupts = [self._deliver(*pair) for pair in zip(group, outcomes, strict=True)]
        for interrupt in filter(None, interrupts):
            raise interrupt

    def _run_step(
        self, decoder: TreeDecoder, group: Sequence[Answer]
    ) -> Sequence[list[int] | BitaError]:
        """Run a step; return the tokens it emitted for each answer, or the answer's error."""
        try:
            if len(group) == 1:
                return [decoder.step(group[0].sequence)]
            return self._joint_decoder(decoder).step([each.sequence for each in group])
        except BitaError as error:
            (self._places or self._shared_cache).invalidate()
            return [error] * len(group)

    def _joint_decoder(self, decoder: TreeDecoder) -> JointDecoder:
        if decoder not in self._joint:
            step = self._backend.joint_step(decoder.adapter)
            assert step is not None
            assert self._places is not None
            self._joint[decoder] = JointDecoder(decoder, step, self._places)
        return self._joint[decoder]

    def _deliver(self, answer: Answer, outcome: list[int] | BitaError) -> BaseException | None:
        """Give an answer its outcome of a step; return the exception that interrupted this."""
        interrupt = None
        if isinstance(outcome, BitaError):
            answer.fail(outcome)
        else:
            try:
                answer.take(outcome)
            except BaseException as error:  # the other answers still get their outcomes
                interrupt = error
                answer.fail(EngineError(INTERRUPTED))
        if answer.has_ended and self._places is not None:
            self._places.end(answer.sequence)
        return interrupt

    def _wants_step(self, answer: Answer) -> bool:
        if answer.has_ended:
            return False
        if answer.wants_step():
            return True
        if self._places is not None:
            self._places.end(answer.sequence)
        return False

    def _next_in_slices(self, group: Sequence[Answer]) -> Answer:
        """Return the answer that runs next, if a step can run only one.

        Answers without a token take precedence when a slice ends.
        """
        if len(group) == 1:
            return group[0]
        owner = None if self._slice is None else self._slice()
        if owner is None or owner not in group:
            owner, self._num_left = group[0], SLICE_STEPS
        elif not self._num_left:
            place = group.index(owner) + 1
            others = [*group[place:], *group[: place - 1]]
            unread = [each for each in others if not each.sequence.has_answer]
            owner, self._num_left = (unread or others)[0], SLICE_STEPS
        self._slice = ref(owner)
        self._num_left -= 1
        return owner
