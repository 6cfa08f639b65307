"""Concurrent writers and readers of one engine, some killed at random moments.

python tests/support/stress_writers.py [--rounds N] [--seed N] [SCENARIO ...] prints how often each
outcome occurred in each scenario, and exits with 1 if an engine was mixed, broken or lost. The
writers are commands of a user in separate processes. The hashes of files identify their model; a
reader also compares the text that a session generates.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from make_tiny_engine import write_plain_model

from bita import directory_swap
from bita.cli.main import main
from bita.engine import ADAPTER_FILE, GRAPH_FILE, WEIGHTS_FILE, open_engine, revise_engine
from bita.errors import EngineError
from bita.runtime.session import Session

PROMPT, NUM_TOKENS = "Hello tree", 6
CORE = (GRAPH_FILE, WEIGHTS_FILE, ADAPTER_FILE)
FEW = ("--limit", "3", "--max-new-tokens", "6", "--repeats", "1", "--max-rows", "3")
BUILD = ("--uncalibrated", "--precision", "fp32", "--capacity", "384")
WRONG = ("mixed", "broken", "lost", "left over", "reader: mixed", "reader: broken")
SPAN_S = 1.5  # time within which writers start and are killed
Writer = Callable[[Path, dict[str, Path]], int]


@dataclass(frozen=True)
class Known:
    """File hashes and text by which the engine of a model is recognized."""

    hashes: tuple[str, ...]
    text: str


def build(name: str, out: Path, models: dict[str, Path]) -> int:
    return main(["engine", str(models[name]), "--out", str(out), *BUILD])


def calibrate(stage: str, out: Path, models: dict[str, Path]) -> int:
    return main(["calibrate", stage, str(out), *FEW, "--remeasure", "--threads", "1"])


def revise(out: Path, models: dict[str, Path], file_by_file: bool = False) -> int:
    """Revise an engine many times while others revise and build it too."""
    if file_by_file:
        directory_swap._exchange = lambda one, other: False
    done, end = 0, time.monotonic() + SPAN_S / 2
    while time.monotonic() < end:
        try:
            text = json.dumps({"note": [os.getpid(), done]})
            revise_engine(open_engine(out), {"calibration.json": text})
            done += 1
        except EngineError as error:
            if "by another process after this one read it" not in str(error):
                raise
    return 0


SCENARIOS: dict[str, tuple[Writer, ...]] = {
    "two builds": (partial(build, "a"), partial(build, "b")),
    "a build and a calibration": (partial(build, "b"), partial(calibrate, "acceptance")),
    "two calibrations": (partial(calibrate, "latency"), partial(calibrate, "acceptance")),
    "two trees": (partial(calibrate, "tree"), partial(calibrate, "tree")),
    "many revisions and a build": (revise, revise, partial(build, "b")),
    "file by file": (*[partial(revise, file_by_file=True)] * 2, partial(build, "b")),
}


class Stress:
    """Two models with their known engines, and the rounds of a scenario."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fork = multiprocessing.get_context("fork")
        self._models = {name: write_plain_model(folder / name, n) for n, name in enumerate("ab")}
        self._known = {name: self._know(name) for name in self._models}

    def round(self, scenario: str, seed: int) -> Counter[str]:
        """Run the writers of a scenario once with a reader, and inspect the result."""
        dice, out = random.Random(seed), self._folder / "out" / "engine"
        shutil.rmtree(out.parent, ignore_errors=True)
        starts_with_engine = scenario != "two builds" or dice.random() < 0.5
        if starts_with_engine:
            shutil.copytree(self._folder / "known-a", out)
        results: Any = self._fork.SimpleQueue()
        stop: Any = self._fork.Event()
        reader = self._start(self._read, out, starts_with_engine, stop, results)
        writers = [
            self._start(_write, writer, out, self._models, dice.random() * SPAN_S / 3)
            for writer in SCENARIOS[scenario]
        ]
        for writer in writers:
            if dice.random() < 0.5:
                time.sleep(dice.random() * SPAN_S / len(writers))
                if writer.pid and writer.is_alive():
                    os.kill(writer.pid, signal.SIGKILL)
        for writer in writers:
            writer.join()
        stop.set()
        reader.join()
        seen = Counter(_ending(writer.exitcode) for writer in writers)
        while not results.empty():
            seen.update(results.get())
        must_be = starts_with_engine or seen["writer: done"] > 0
        seen.update(self._in_child(self._look, out, must_be))
        return seen

    def _read(self, out: Path, must_be: bool, stop: Any, results: Any) -> None:
        """Open the engine repeatedly and count the outcomes."""
        seen = Counter[str]()
        while not stop.is_set():
            try:
                session = Session.open(out, num_threads=1)
                text = session.generate(PROMPT, NUM_TOKENS, ignore_eos=True).text
                kind = self._kind_of(session.engine.files)
                right = kind is not None and text == self._known[kind].text
                seen["reader: whole" if right else "reader: mixed"] += 1
                time.sleep(0.02)
            except EngineError as error:
                if not must_be and "is not a directory" in str(error):
                    seen["reader: none yet"] += 1
                else:
                    print(f"reader: {error}", file=sys.stderr)
                    seen["reader: broken"] += 1
            must_be = must_be or out.exists()
        results.put(dict(seen))

    def _look(self, out: Path, must_be: bool) -> Counter[str]:
        """Return the state of the engine at `out`, and of the files that the next writer leaves."""
        if not out.exists() and not must_be:
            return Counter({"none": 1})
        try:
            engine = open_engine(out, check_hashes=True)
        except EngineError as error:
            print(f"engine: {error}", file=sys.stderr)
            return Counter({"broken" if out.exists() else "lost": 1})
        if self._kind_of(engine.files) is None:
            return Counter({"mixed": 1})
        revise_engine(engine, {"calibration.json": "{}"})
        rest = [p.name for p in out.parent.iterdir() if p != out and p.suffix != ".jsonl"]
        inside = {p.name for p in out.iterdir()} - {*engine.files, "manifest.json"}
        if rest or inside - {"calibration.json"}:
            print(f"left over: {rest} {inside}", file=sys.stderr)
            return Counter({"left over": 1})
        return Counter({"whole": 1})

    def _kind_of(self, files: dict[str, dict[str, Any]]) -> str | None:
        hashes = tuple(files[name]["sha256"] for name in CORE)
        return next((n for n, known in self._known.items() if known.hashes == hashes), None)

    def _know(self, name: str) -> Known:
        out = self._folder / f"known-{name}"
        return self._in_child(_known_engine, name, out, self._models)

    def _in_child(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return the result of a function; this process must have no threads when it forks."""
        receiver, sender = self._fork.Pipe(duplex=False)
        child = self._start(lambda: sender.send(function(*args)))
        child.join()
        return receiver.recv()

    def _start(self, function: Callable[..., None], *args: Any) -> Any:
        child = self._fork.Process(target=function, args=args, daemon=True)
        child.start()
        return child


def _known_engine(name: str, out: Path, models: dict[str, Path]) -> Known:
    with redirect_stdout(sys.stderr):
        assert build(name, out, models) == 0
    session = Session.open(out, num_threads=1)
    hashes = tuple(session.engine.files[each]["sha256"] for each in CORE)
    return Known(hashes, session.generate(PROMPT, NUM_TOKENS, ignore_eos=True).text)


def _write(writer: Writer, out: Path, models: dict[str, Path], delay: float) -> None:
    time.sleep(delay)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        sys.exit(writer(out, models))


def _ending(status: int | None) -> str:
    return {0: "writer: done", -signal.SIGKILL: "writer: killed"}.get(status or 0, "writer: error")


def run(rounds: int, seed: int, scenarios: Sequence[str]) -> dict[str, Counter[str]]:
    """Count the outcomes of all rounds of each scenario."""
    with tempfile.TemporaryDirectory() as folder:
        stress = Stress(Path(folder))
        found = {name: Counter[str]() for name in scenarios}
        for number in range(rounds):
            for name in scenarios:
                found[name] += stress.round(name, seed + number)
    return found


def cli() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = run(args.rounds, args.seed, args.scenarios or [*SCENARIOS])
    for name, seen in found.items():
        print(f"{name}: {dict(sorted(seen.items()))}", flush=True)
    return int(any(seen[wrong] for seen in found.values() for wrong in WRONG))


if __name__ == "__main__":
    sys.exit(cli())
