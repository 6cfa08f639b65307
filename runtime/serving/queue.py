"""The line of requests for the engine, and the thread that answers them, several at a time."""

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
MAX_CLIENTS = 4096  # remembered
# Sending a piece of a stream takes 0.1 ms of CPU time, which decode steps then lack. With many
# streams each gets fewer and longer pieces, except that its first piece is sent at once.
PIECES_A_SECOND, MANY_STREAMS = 250, 4
MAX_PAUSE = 0.05  # maximum delay in seconds between the pieces of a stream because of others


@dataclass
class Piece:
    """Text that was added to one of a request's answers."""

    index: int  # number of the answer
    text: str
    has_ended: bool = False  # whether this is the answer's last piece


Event = Piece | BaseException | None


@dataclass(eq=False)
class Job:
    """A request for answers.

    events: if it is a stream, its pieces; then None at its end, or the error that ended it.
    """

    generations: Sequence[Generation]
    loop: asyncio.AbstractEventLoop
    is_stream: bool = True
    client: str = ""  # its sender; clients get equal shares of the engine
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    came_at: float = field(default_factory=monotonic)
    started_at: float | None = None
    first_token_at: float | None = None
    is_cancelled: bool = False

    def __post_init__(self) -> None:
        self._reported = [(0, False)] * len(self.generations)  # tokens, and whether it has ended
        self._num_characters = [0] * len(self.generations)
        self._reported_at = 0.0

    @property
    def has_ended(self) -> bool:
        return all(each.has_ended for each in self.generations)

    @property
    def error(self) -> BaseException | None:
        """The error of the first answer that failed."""
        return next((each.error for each in self.generations if each.error is not None), None)

    @property
    def num_steps(self) -> int:
        """Decode steps of all its answers."""
        return sum(each.num_steps for each in self.generations)

    def cancel(self) -> None:
        """End the job before its next step."""
        self.is_cancelled = True
        for generation in self.generations:
            generation.cancel()

    def new_events(self, now: float, pause: float) -> Iterator[Event]:
        """Yield the events since the last call that yielded any.

        Between the first and the last events of a job, at least `pause` seconds must pass.

        now: current time of `monotonic`.
        """
        if self.first_token_at and now < self._reported_at + pause and not self.has_ended:
            return
        self._reported_at = now
        for index, generation in enumerate(self.generations):
            state = len(generation.token_ids), generation.has_ended
            if state != self._reported[index]:
                self._reported[index] = state
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
    """The line of requests, and the thread that answers them.

    If several clients wait, the one with the fewest running answers is next; of equal ones, the one
    whose last turn was longest ago.

    Args:
        session: Session that generates the answers.
        num_waiting: Number of requests that may wait, not counting those being answered.
        num_running: Maximum number of answers at the same time; they share steps.
        on_steps: Called with the statistics of steps from time to time.
        on_answer: Called with a job when it has ended.
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
        self._last_next: OrderedDict[str, int] = OrderedDict()  # number of each client's last turn
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="bita-engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests in line that are not being answered yet."""
        with self._changed:
            return self._num_taken - len(self._running)

    @property
    def num_taken(self) -> int:
        """Requests in line, including those being answered."""
        return self._num_taken

    @property
    def num_running(self) -> int:
        """Requests being answered."""
        return len(self._running)

    def take_place(self) -> None:
        """Take a place in line until `leave`. Raises RequestError 429 if all places are taken."""
        with self._changed:
            if self._is_closed:
                raise RequestError(503, "the server is shutting down", "server_error")
            if self._num_taken >= self._num_places:
                raise RequestError(
                    429,
                    f"the server already has {self._num_taken} requests; try again later",
                    "rate_limit_error",
                    "rate_limit_exceeded",
                    headers={"Retry-After": "1"},
                )
            self._num_taken += 1

    def join(self, job: Job) -> None:
        """Add a job, whose request has taken a place."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def leave(self, job: Job | None = None) -> None:
        """Leave the line; an unfinished job is ended within one step."""
        with self._changed:
            self._num_taken -= 1
            if job is not None:
                job.cancel()
                if job in self._jobs:
                    self._jobs.remove(job)

    def expire(self, job: Job) -> bool:
        """Remove a job that is still waiting; return whether it was."""
        with self._changed:
            if job not in self._jobs:
                return False
            self._jobs.remove(job)
            return True

    def close(self) -> None:
        """End all jobs, and join the thread."""
        with self._changed:
            self._is_closed = True
            for job in (*self._jobs, *self._running):
                job.cancel()
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while self._admit():
            self._step()
            jobs = self._running
            self._end(job for job in jobs if job.has_ended)
            self._send_events(jobs)

    def _admit(self) -> bool:
        """Start waiting jobs while there is room; wait for one if nothing is running.

        Returns whether there is a job to run; False after `close`.
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
        """Return the waiting job that is next.

        Its client has the fewest running jobs; of equal clients, the one whose last turn was
        longest ago is next. A client's own jobs keep their order.
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
        """Run one step of all running answers."""
        answers = [each for job in self._running for each in job.generations if not each.has_ended]
        try:
            self._session.advance(answers)
        except Exception as fault:
            log.exception("a step failed")
            for answer in answers:
                answer.fail(fault)

    def _end(self, jobs: Iterable[Job]) -> None:
        """Count finished jobs, and make room for others."""
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

    def _send_events(self, jobs: Iterable[Job]) -> None:
        """Send the events of this step to the event loops that wait for them, one call for each."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, Event]]] = {}
        num_streams = sum(job.is_stream for job in jobs)
        pause = 0.0 if num_streams < MANY_STREAMS else num_streams / PIECES_A_SECOND
        now = monotonic()
        for job in jobs:
            for event in job.new_events(now, min(pause, MAX_PAUSE)):
                by_loop.setdefault(job.loop, []).append((job, event))
        for loop, events in by_loop.items():
            with suppress(RuntimeError):  # the loop is closed, so nobody waits
                loop.call_soon_threadsafe(_put, events)


def _put(events: Iterable[tuple[Job, Event]]) -> None:
    for job, event in events:
        job.events.put_nowait(event)
