"""Runs one target many times in a separate process and collects the faults."""

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

MAX_SECONDS = 2.0  # processor time of one execution
MAX_BYTES = 1 << 30  # memory growth allowed to the process of one target
HANG_SECONDS = 60.0  # without a message from the process

Execute = Callable[[random.Random], None]


@dataclass(frozen=True)
class Target:
    """A parser under test."""

    name: str
    prepare: Callable[[Path], Execute]  # called once, in the child; makes the function to repeat
    allowed: tuple[type[BaseException], ...]  # the project's errors by which it refuses an input


@dataclass
class Outcome:
    """The result of fuzzing one target."""

    taken: int = 0  # executions without an error
    refused: int = 0  # executions that ended with an allowed error
    faults: dict[str, list[int]] = field(default_factory=dict)  # site: numbers of the executions
    executions: int = 0
    slowest: float = 0.0  # seconds of processor time
    grown_bytes: int = 0  # growth of resident memory

    def add_fault(self, what: str, number: int) -> None:
        self.faults.setdefault(what, []).append(number)


def generator_of(target: str, seed: int, number: int) -> random.Random:
    """Return the generator of one execution, so that it can be repeated alone."""
    return random.Random(f"{target}:{seed}:{number}")


def fuzz(
    target: Target, directory: Path, seed: int, executions: int, seconds: float = float("inf")
) -> Outcome:
    """Run a target until either limit is reached; a process that dies or hangs is a fault."""
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
    """Run executions in a child process and return the number at which to continue."""
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
    slowest, reported = 0.0, time.monotonic()
    for number in numbers:
        sender.send((number, "start", None))
        began = time.process_time()
        try:
            execute(generator_of(target.name, seed, number))
            counts["taken"] += 1
        except target.allowed:
            counts["refused"] += 1
        except BaseException as error:  # a Rust panic is not an Exception
            sender.send((number, "fault", _site(error)))
        seconds = time.process_time() - began
        if seconds > MAX_SECONDS:
            sender.send((number, "fault", f"took more than {MAX_SECONDS} s"))
        slowest = max(slowest, seconds)
        if time.monotonic() > deadline:
            break
        if time.monotonic() > reported + 1:
            sender.send((number, "counts", dict(counts)))
            counts.clear()
            reported = time.monotonic()
    sender.send((number, "counts", dict(counts)))
    sender.send((number, "slowest", slowest))
    grown = _resident_bytes() - resident
    sender.send((number, "grown", grown))
    if grown > MAX_BYTES:
        sender.send((number, "fault", f"grew by more than {MAX_BYTES} bytes"))


def _site(error: BaseException) -> str:
    """Return the error's type and the innermost line of the project in its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/tests/" not in frame.filename and _is_ours(frame)]
    frame = ours[-1] if ours else frames[-1]
    return f"{type(error).__name__} {Path(frame.filename).name}:{frame.lineno} {frame.name}"


def _is_ours(frame: traceback.FrameSummary) -> bool:
    parts = ("/bita/", "/export/", "/runtime/", "/calibration/")
    return "site-packages" not in frame.filename and any(part in frame.filename for part in parts)


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _virtual_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def select_targets(targets: list[Target], names: list[str]) -> Iterator[Target]:
    """Yield the targets with these names, or all targets if there are none."""
    known = {target.name: target for target in targets}
    yield from (known[name] for name in names or known)
