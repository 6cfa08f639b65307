"""Requests in line for the engine, and those that it answers, together where it can."""

import asyncio
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

from bita.runtime.decoding.stats import Stats
from bita.runtime.generation import Generation
from bita.runtime.serving.errors import RequestError
from bita.runtime.session import Session

log = logging.getLogger("bita.serve")
MAX_CLIENTS = 4096  # that are remembered
# A piece of a stream takes 0.1 ms of a processor, which steps lack then: with many streams each has
# fewer and longer pieces. The first comes at once.
PIECES_A_SECOND, MANY_STREAMS = 250, 4
MAX_PAUSE = 0.05  # seconds between the pieces of a stream, because of others


@dataclass
class Piece:
    """Text that was added to one of a request's answers; has_ended: none follows."""

    index: int
    text: str
    has_ended: bool = False


Event = Piece | BaseException | None


@dataclass(eq=False)
class Job:
    """One request. events: Pieces if it is a stream, then None at its end, or the error that ended
    it.

    client: who sent it; clients have equal shares of the engine.
    """

    generations: Sequence[Generation]
    loop: asyncio.AbstractEventLoop
    is_stream: bool = True
    client: str = ""
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    came_at: float = field(default_factory=monotonic)
    started_at: float | None = None
    first_token_at: float | None = None
    is_cancelled: bool = False

    def __post_init__(self) -> None:
        self._told = [(0, False)] * len(self.generations)  # tokens of each, and whether it ended
        self._num_characters = [0] * len(self.generations)
        self._told_at = 0.0

    @property
    def has_ended(self) -> bool:
        return all(each.has_ended for each in self.generations)

    @property
    def error(self) -> BaseException | None:
        """What ended one of its answers."""
        return next((each.error for each in self.generations if each.error is not None), None)

    @property
    def num_steps(self) -> int:
        """Decode steps of all its answers."""
        return sum(each.num_steps for each in self.generations)

    def cancel(self) -> None:
        """End it before its next step; it needs no more of the engine."""
        self.is_cancelled = True
        for generation in self.generations:
            generation.cancel()

    def news(self, now: float, pause: float) -> Iterator[Event]:
        """What there is to tell since there was news last, which is `pause` seconds ago at least
        unless the job has begun or ended.

        now: by `monotonic`.
        """
        if self.first_token_at and now < self._told_at + pause and not self.has_ended:
            return
        self._told_at = now
        for index, generation in enumerate(self.generations):
            state = len(generation.token_ids), generation.has_ended
            if state != self._told[index]:
                self._told[index] = state
                if self.first_token_at is None:
                    self.first_token_at = monotonic()
                if self.is_stream and not self.is_cancelled and generation.error is None:
                    start, text = self._num_characters[index], generation.text
                    self._num_characters[index] = len(text)
                    yield Piece(index, text[start:], generation.has_ended)
        if self.error is not None:
            self.cancel()
        if self.has_ended:
            yield self.error


class Line:
    """The places of requests, and the thread that answers them.

    num_waiting: places for requests beside those that are answered. num_running: answers that are
    given at once, at the most; they share steps. Where several clients wait, the one with the
    fewest answers is next, or the one that was not for longest. on_steps: called with the figures
    of steps now and then. on_answer: called with a job when it has ended.
    """

    def __init__(
        self,
        session: Session,
        num_waiting: int,
        num_running: int = 1,
        on_steps: Callable[[Stats], None] = lambda stats: None,
        on_answer: Callable[[Job], None] = lambda job: None,
    ) -> None:
        self._session = session
        self._num_places = num_waiting + num_running
        self._max_running = num_running
        self._on_steps = on_steps
        self._on_answer = on_answer
        self._jobs: list[Job] = []
        self._running: list[Job] = []
        self._num_taken = 0
        self._num_next = 0
        self._last_next: OrderedDict[str, int] = OrderedDict()  # by client, when it was next
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="bita-engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests that have a place and are not answered yet."""
        with self._changed:
            return self._num_taken - len(self._running)

    @property
    def num_taken(self) -> int:
        """Places that requests have, those that are answered included."""
        return self._num_taken

    @property
    def num_running(self) -> int:
        return len(self._running)

    def take_place(self) -> None:
        """Have a place until `leave`. Raises RequestError 429 if all are taken."""
        with self._changed:
            if self._is_closed:
                raise RequestError(503, "the server is shutting down", "server_error")
            if self._num_taken >= self._num_places:
                raise RequestError(
                    429,
                    f"{self._num_taken} requests are here already; try again later",
                    "rate_limit_error",
                    "rate_limit_exceeded",
                    headers={"Retry-After": "1"},
                )
            self._num_taken += 1

    def join(self, job: Job) -> None:
        """Have a job answered in its turn; its request has a place."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def leave(self, job: Job | None = None) -> None:
        """Give a place back; a job that is not at its end is ended within one step."""
        with self._changed:
            self._num_taken -= 1
            if job is not None:
                job.cancel()
                if job in self._jobs:
                    self._jobs.remove(job)

    def expire(self, job: Job) -> bool:
        """Take a job out of the line if its turn has not come; says whether it was there."""
        with self._changed:
            if job not in self._jobs:
                return False
            self._jobs.remove(job)
            return True

    def close(self) -> None:
        """End all jobs and the thread."""
        with self._changed:
            self._is_closed = True
            for job in (*self._jobs, *self._running):
                job.cancel()
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while self._admitted():
            self._step()
            jobs = self._running
            self._end(job for job in jobs if job.has_ended)
            self._tell(jobs)

    def _admitted(self) -> bool:
        """Take jobs out of the line while there is room; wait for one if there is none at all.
        Says whether there is something to do.
        """
        with self._changed:
            while not self._jobs and not self._running:
                if self._is_closed:
                    return False
                self._changed.wait()
            num_answers = sum(len(job.generations) for job in self._running)
            while self._jobs and (not self._running or num_answers < self._max_running):
                job = self._next()
                self._jobs.remove(job)
                job.started_at = monotonic()
                self._running.append(job)
                num_answers += len(job.generations)
            return True

    def _next(self) -> Job:
        """The job in line whose client has the fewest answers, or was not next for longest; of
        these the first that came.
        """
        answers, last = Counter(job.client for job in self._running), self._last_next
        found = min(self._jobs, key=lambda job: (answers[job.client], last.get(job.client, 0)))
        self._num_next += 1
        last[found.client] = self._num_next
        last.move_to_end(found.client)
        if len(last) > MAX_CLIENTS:
            last.popitem(last=False)
        return found

    def _step(self) -> None:
        """One step of all answers."""
        answers = [each for job in self._running for each in job.generations if not each.has_ended]
        try:
            self._session.advance(answers)
        except Exception as fault:
            log.exception("a step failed")
            for answer in answers:
                answer.fail(fault)

    def _end(self, jobs: Iterable[Job]) -> None:
        """Count jobs that have ended, and make room for others."""
        ended = [*jobs]
        if not ended:
            return
        stats = self._session.stats
        self._session.reset_stats()
        self._on_steps(stats)
        with self._changed:
            self._running = [job for job in self._running if job not in ended]
        for job in ended:
            self._on_answer(job)

    def _tell(self, jobs: Iterable[Job]) -> None:
        """Give the news of this step to whoever waits for them, all in one go."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, Event]]] = {}
        num_streams = sum(job.is_stream for job in jobs)
        pause = 0.0 if num_streams < MANY_STREAMS else num_streams / PIECES_A_SECOND
        now = monotonic()
        for job in jobs:
            for event in job.news(now, min(pause, MAX_PAUSE)):
                by_loop.setdefault(job.loop, []).append((job, event))
        for loop, events in by_loop.items():
            with suppress(RuntimeError):  # it is closed, and nobody waits
                loop.call_soon_threadsafe(_put, events)


def _put(events: Iterable[tuple[Job, Event]]) -> None:
    for job, event in events:
        job.events.put_nowait(event)
