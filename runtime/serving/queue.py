"""Requests in line for the engine: one is answered at a time, from its start to its end."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from bita.errors import BitaError
from bita.runtime.decoding.stats import Stats
from bita.runtime.generation import Generation
from bita.runtime.serving.errors import RequestError
from bita.runtime.session import Session

log = logging.getLogger("bita.serve")


@dataclass
class Piece:
    """Text that was added to one of a request's answers."""

    index: int
    text: str


@dataclass(eq=False)
class Job:
    """One request. events: Pieces, then None at its end, or the error that ended it."""

    generations: Sequence[Generation]
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[Piece | BaseException | None]" = field(default_factory=asyncio.Queue)
    came_at: float = field(default_factory=monotonic)
    started_at: float | None = None
    first_token_at: float | None = None
    is_cancelled: bool = False

    def tell(self, event: "Piece | BaseException | None") -> None:
        """Called from the worker."""
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    def cancel(self) -> None:
        """End it before its next step; it needs no more of the engine."""
        self.is_cancelled = True
        for generation in self.generations:
            generation.cancel()


class Line:
    """The places of requests, and the thread that answers them in the order of their coming.

    num_waiting: places for requests beside the one that is answered. on_answer: called with a job
    when it has ended, and the figures of its steps.
    """

    def __init__(
        self,
        session: Session,
        num_waiting: int,
        on_answer: Callable[[Job, Stats], None] = lambda job, stats: None,
    ) -> None:
        self._session = session
        self._num_places = num_waiting + 1
        self._on_answer = on_answer
        self._jobs: deque[Job] = deque()
        self._running: Job | None = None
        self._num_taken = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="bita-engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests that have a place and are not answered yet."""
        with self._changed:
            return self._num_taken - (self._running is not None)

    @property
    def num_taken(self) -> int:
        """Places that requests have, the one that is answered included."""
        return self._num_taken

    @property
    def num_running(self) -> int:
        return int(self._running is not None)

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
            for job in (*self._jobs, self._running):
                if job is not None:
                    job.cancel()
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._is_closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                self._running = self._jobs.popleft()
            self._answer(self._running)
            with self._changed:
                self._running = None

    def _answer(self, job: Job) -> None:
        job.started_at = monotonic()
        self._session.reset_stats()
        error: BaseException | None = None
        try:
            for index, generation in enumerate(job.generations):
                self._run(job, index, generation)
        except BitaError as refusal:
            error = refusal
        except Exception as fault:
            log.exception("an answer failed")
            error = fault
        self._on_answer(job, self._session.stats)
        job.tell(error)

    def _run(self, job: Job, index: int, generation: Generation) -> None:
        for text in generation:
            if generation.token_ids and job.first_token_at is None:
                job.first_token_at = monotonic()
            if not job.is_cancelled:
                job.tell(Piece(index, text))
