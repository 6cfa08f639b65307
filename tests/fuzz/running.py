"""Runs one target many times in a process of its own, and collects what went wrong."""

import multiprocessing
import random
import resource
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_SECONDS = 2.0  # of the processor, for one execution
MAX_BYTES = 1 << 30  # that one target may take, over what its process had at the start
HANG_SECONDS = 60.0  # without an execution that ends

Execute = Callable[[random.Random], None]


@dataclass(frozen=True)
class Target:
    """A parser under test.

    prepare: called once in the process, with a directory of its own; returns what makes one input
    from a generator and reads it. allowed: errors of the project's own, by which it refuses.
    """

    name: str
    prepare: Callable[[Path], Execute]
    allowed: tuple[type[BaseException], ...]


@dataclass
class Outcome:
    """taken, refused: executions without an error, and with an allowed one. faults: where an
    error of another kind arose, and the numbers of the executions. slowest: seconds.
    """

    taken: int = 0
    refused: int = 0
    faults: dict[str, list[int]] = field(default_factory=dict)
    executions: int = 0
    slowest: float = 0.0
    grown_bytes: int = 0

    def add_fault(self, what: str, number: int) -> None:
        self.faults.setdefault(what, []).append(number)


def generator_of(target: str, seed: int, number: int) -> random.Random:
    """The generator of one execution, so that it can be repeated alone."""
    return random.Random(f"{target}:{seed}:{number}")


def fuzz(
    target: Target, directory: Path, seed: int, executions: int, seconds: float = float("inf")
) -> Outcome:
    """Run a target so many times, or for so long; a process that dies or hangs is a fault."""
    outcome, start = Outcome(), 0
    deadline = time.monotonic() + seconds
    while start < executions and time.monotonic() < deadline:
        start = _run_child(target, directory, seed, range(start, executions), deadline, outcome)
    return outcome


def _run_child(
    target: Target,
    directory: Path,
    seed: int,
    numbers: range,
    deadline: float,
    outcome: Outcome,
) -> int:
    """Run executions in a child; returns the number after the last one that ended or was killed."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(target, directory, seed, numbers, deadline, sender))
    child.start()
    sender.close()
    reached = numbers.start
    while receiver.poll(HANG_SECONDS):
        try:
            reached, kind, what = receiver.recv()
        except EOFError:
            child.join()
            if child.exitcode:
                outcome.add_fault(f"the process died (exit code {child.exitcode})", reached)
                return reached + 1
            return numbers.stop
        _record(outcome, reached, kind, what)
    child.kill()
    child.join()
    outcome.add_fault("hangs", reached)
    return reached + 1


def _record(outcome: Outcome, number: int, kind: str, what: Any) -> None:
    if kind == "start":
        outcome.executions += 1
    elif kind == "fault":
        outcome.add_fault(what, number)
    elif kind == "counts":
        for name, count in what.items():
            setattr(outcome, name, getattr(outcome, name) + count)
    elif kind == "slowest":
        outcome.slowest = max(outcome.slowest, what)
    elif kind == "grown":
        outcome.grown_bytes = max(outcome.grown_bytes, what)


def _work(
    target: Target, directory: Path, seed: int, numbers: range, deadline: float, sender: Any
) -> None:
    execute = target.prepare(directory)
    resident = _resident_bytes()
    limit = _virtual_bytes() + MAX_BYTES + (256 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    counts: Counter[str] = Counter()
    slowest, told = 0.0, time.monotonic()
    for number in numbers:
        sender.send((number, "start", None))
        began = time.process_time()
        try:
            execute(generator_of(target.name, seed, number))
            counts["taken"] += 1
        except target.allowed:
            counts["refused"] += 1
        except BaseException as error:  # a panic of Rust is no Exception
            sender.send((number, "fault", _site(error)))
        seconds = time.process_time() - began
        if seconds > MAX_SECONDS:
            sender.send((number, "fault", f"took more than {MAX_SECONDS} s"))
        slowest = max(slowest, seconds)
        if time.monotonic() > deadline:
            break
        if time.monotonic() > told + 1:
            sender.send((number, "counts", dict(counts)))
            counts.clear()
            told = time.monotonic()
    sender.send((number, "counts", dict(counts)))
    sender.send((number, "slowest", slowest))
    grown = _resident_bytes() - resident
    sender.send((number, "grown", grown))
    if grown > MAX_BYTES:
        sender.send((number, "fault", f"grew by more than {MAX_BYTES} bytes"))


def _site(error: BaseException) -> str:
    """The error's type and the innermost place of the project that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/tests/" not in frame.filename and _is_ours(frame)]
    frame = ours[-1] if ours else frames[-1]
    return f"{type(error).__name__} {Path(frame.filename).name}:{frame.lineno} {frame.name}"


def _is_ours(frame: traceback.FrameSummary) -> bool:
    rooms = ("/bita/", "/export/", "/runtime/", "/calibration/")
    return "site-packages" not in frame.filename and any(room in frame.filename for room in rooms)


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _virtual_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def by_name(targets: list[Target], names: list[str]) -> Iterator[Target]:
    """The targets with these names, all for no names. Raises KeyError."""
    known = {target.name: target for target in targets}
    yield from (known[name] for name in names or known)
