"""Measure the cost of profiling: compare recorded steps with steps that are not recorded.

    python benchmarks/profiling_overhead.py ENGINE [--prompts mt_bench.jsonl] [--out FILE]

With profiling on, `session.record` has a `Recorder`, as in `bita profile --trace`; with profiling
off, only the check for a recorder remains. Answers alternate between both. The overhead is measured
in two ways: from the times of steps, which include the machine's noise, and from the recorder's own
work, timed separately.
"""

import argparse
import json
import statistics
import sys
import timeit
from pathlib import Path
from typing import Any

import numpy as np
from peer_report import describe_machine

from bita.calibration.profiling.recorder import Recorder
from bita.data.prompts import read_prompts
from bita.errors import BitaError
from bita.runtime.session import Session

PARTS = 3  # recorded phases of a step: draft, backend, accept and commit
CALLS = 200_000


def step_times(session: Session, args: argparse.Namespace) -> dict[str, list[float]]:
    """Return the ms of the steps of all answers, alternately with and without a recorder."""
    times: dict[str, list[float]] = {"off": [], "on": []}
    for number, prompt in enumerate(read_prompts(args.prompts, args.limit)):
        for turn in (0, 1):
            kind = ("off", "on")[(number + turn) % 2]
            session.record(Recorder().add if kind == "on" else None)
            session.forget()
            session.reset_stats()
            session.generate(prompt, args.max_new_tokens)
            times[kind] += session.stats.step_ms
    session.record(None)
    return times


def time_recorder() -> tuple[float, float]:
    """Return the ms of recording a step, and of checking whether to record it."""
    recorder = Recorder()
    record = timeit.timeit(lambda: recorder.add("draft", 0.0, 1.0, 4), number=CALLS)
    holder = argparse.Namespace(record=None)
    ask = timeit.timeit(lambda: holder.record is not None, number=CALLS)
    nothing = timeit.timeit(lambda: None, number=CALLS)
    return 1000 * PARTS * (record - nothing) / CALLS, 1000 * max(ask - nothing, 0.0) / CALLS


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the overhead in both ways."""
    session = Session.open(args.engine)
    session.generate(read_prompts(args.prompts, 1)[0], 32)
    times = step_times(session, args)
    off, on = (statistics.median(times[kind]) for kind in ("off", "on"))
    rng = np.random.default_rng(0)
    ratios = [
        float(np.median(rng.choice(times["on"], len(times["on"]))))
        / float(np.median(rng.choice(times["off"], len(times["off"]))))
        for _ in range(500)
    ]
    record_ms, ask_ms = time_recorder()
    low, high = np.percentile(ratios, (2.5, 97.5))
    return {
        **describe_machine(2),
        "engine": args.engine.name,
        "steps": {kind: len(values) for kind, values in times.items()},
        "step_ms": {"off": round(off, 4), "on": round(on, 4)},
        "on_over_off": {
            "median": round(on / off, 5),
            "low": round(float(low), 5),
            "high": round(float(high), 5),
        },
        "record_ms_a_step": round(record_ms, 6),
        "share_on": round(record_ms / off, 6),
        "ask_ms_a_step": round(ask_ms, 7),
        "share_off": round(ask_ms / off, 7),
    }


def main() -> int:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    try:
        report = measure(args)
    except BitaError as error:
        print(f"profiling_overhead: {error}", file=sys.stderr)
        return 1
    text = json.dumps(report, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
