"""Measure T(q), long texts and prompts of several engines, interleaved in one process.

    python benchmarks/rows.py engines/smollm2-135m-instruct-int4 engines/OTHER \\
        --lengths 127,2000 --out benchmarks/results/rows.json

Engines run alternately in bursts of steps, with a pause before each, so that the threads of the
other session have stopped spinning. `--isas` forces instruction sets of the native operators. The
report also has the bandwidth of copying memory on this machine, the bytes of weights that a step of
one row reads, and the share of the copy's bandwidth which that reaches.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from bita.calibration.latency import describe_device
from bita.dialect_spec import NATIVE
from bita.engine import WEIGHTS_FILE
from bita.runtime.backends.backend import Step
from bita.runtime.backends.layout import Layout
from bita.runtime.decoding.prefill import Prefill, text_steps
from bita.runtime.native.library import loaded_operators, use_isa
from bita.runtime.session import Session
from bita.tree import Tree

BURST, WARM_UP = 12, 4  # steps of a burst, and how many of them do not count
PAUSE = 0.03  # seconds, in which idle threads stop spinning
PROMPT_TOKENS = 512
COPIED = 256 << 20  # bytes of a copy, far more than the caches hold


@dataclass
class Subject:
    """An engine that runs with one instruction set."""

    name: str
    session: Session
    isa: str | None  # of the native operators; None for the default

    def take_isa(self) -> None:
        if self.isa is not None:
            use_isa(self.isa)

    def read(self, token_ids: Sequence[int]) -> None:
        """Fill the cache with these tokens."""
        backend, adapter = self.session.backend, self.session.adapter
        backend.cache.start(adapter)
        prefill = Prefill(backend.cache, backend.prefill_rows, text_steps(backend, adapter, 1))
        for _ in prefill.pieces(token_ids):
            pass

    def bind(self, num_rows: int, token_ids: Sequence[int]) -> Step:
        """Bind a step of a chain in which all rows give tokens."""
        index = np.arange(num_rows)
        layout = Layout(index, np.full(num_rows, -1), np.tri(num_rows, dtype=np.bool_), index)
        step = self.session.backend.bind(layout, self.session.adapter)
        step.token_ids[0, :] = token_ids[:num_rows]
        return step


def open_subjects(args: argparse.Namespace) -> list[Subject]:
    subjects = []
    for path in args.engines:
        session = Session.open(path, tree=Tree.root_only(), num_threads=args.threads)
        is_native = session.engine.manifest.dialect == NATIVE.name
        for isa in args.isas.split(",") if is_native and args.isas else [None]:
            name = path.name if isa is None else f"{path.name} ({isa})"
            subjects.append(Subject(name, session, isa))
    return subjects


def time_rows(
    subjects: Sequence[Subject], length: int, sizes: Sequence[int], rounds: int
) -> dict[str, dict[int, list[float]]]:
    """Time steps after `length` tokens of text; return all ms by subject and rows."""
    rng = np.random.default_rng(0)
    text = rng.integers(100, 1000, length + max(sizes)).tolist()
    found: dict[str, dict[int, list[float]]] = {
        subject.name: {size: [] for size in sizes} for subject in subjects
    }
    for subject in subjects:
        subject.read(text[:length])
    for _ in range(rounds):
        for size in sizes:
            for subject in subjects:
                step = subject.bind(size, text)
                subject.take_isa()
                time.sleep(PAUSE)
                times = [time_ms(step.run) for _ in range(BURST)]
                found[subject.name][size] += times[WARM_UP:]
    return found


def time_prompts(subjects: Sequence[Subject], rounds: int) -> dict[str, list[float]]:
    """Time a prompt; return all ms by subject."""
    prompt = np.random.default_rng(1).integers(100, 1000, PROMPT_TOKENS).tolist()
    found: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for _ in range(rounds):
        for subject in subjects:
            subject.take_isa()
            time.sleep(PAUSE)
            found[subject.name].append(time_ms(lambda subject=subject: subject.read(prompt)))
    return found


def time_ms(run: Any) -> float:
    began = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began)


def copy_gigabytes_per_second(num_threads: int) -> float:
    """Measure the GB per second that copies on all threads read and write, the best of several."""
    size = COPIED // num_threads
    pairs = [(np.ones(size, np.uint8), np.zeros(size, np.uint8)) for _ in range(num_threads)]

    def copy() -> None:
        threads = [Thread(target=np.copyto, args=(to, source)) for source, to in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return 2 * COPIED / min(time_ms(copy) for _ in range(8)) / 1e6


def summary(times: Sequence[float]) -> dict[str, float]:
    return {
        "min_ms": round(min(times), 3),
        "p50_ms": round(float(np.median(times)), 3),
        "p95_ms": round(float(np.quantile(times, 0.95)), 3),
    }


def describe_rows(rows: dict[int, list[float]]) -> dict[str, Any]:
    """Summarize times by rows, with their ratios to those of the first size."""
    base = summary(next(iter(rows.values())))
    return {
        str(size): {
            **summary(times),
            "ratio_of_min": round(min(times) / base["min_ms"], 3),
            "ratio_of_p50": round(float(np.median(times)) / base["p50_ms"], 3),
        }
        for size, times in rows.items()
    }


def report_of(args: argparse.Namespace, subjects: Sequence[Subject]) -> dict[str, Any]:
    sizes = [int(size) for size in args.rows.split(",")]
    lengths = [int(length) for length in args.lengths.split(",")]
    report: dict[str, Any] = {"device": describe_device(args.threads), "engines": {}}
    report["copy_gb_per_s"] = round(copy_gigabytes_per_second(args.threads or 2), 1)
    for subject in subjects:
        engine = subject.session.engine
        report["engines"][subject.name] = {
            "dialect": engine.manifest.dialect,
            "precision": engine.manifest.precision,
            "isa": subject.isa or (loaded_operators().isa if is_native(subject) else None),
            "weight_bytes": engine.files[WEIGHTS_FILE]["bytes"],
            "after": {},
        }
    for length in lengths:
        for name, rows in time_rows(subjects, length, sizes, args.rounds).items():
            report["engines"][name]["after"][str(length)] = describe_rows(rows)
            shown = (
                f"{q}: {min(t):.2f} ({min(t) / min(rows[sizes[0]]):.2f})" for q, t in rows.items()
            )
            print(f"{name}, after {length} tokens, ms: {', '.join(shown)}", flush=True)
    for name, times in time_prompts(subjects, args.rounds).items():
        report["engines"][name][f"prompt_of_{PROMPT_TOKENS}"] = summary(times)
        print(f"{name}, {PROMPT_TOKENS} prompt tokens: {min(times):.0f} ms", flush=True)
    for figures in report["engines"].values():
        first = next(iter(figures["after"].values()))
        speed = figures["weight_bytes"] / first[str(sizes[0])]["min_ms"] / 1e6
        figures["weights_gb_per_s"] = round(speed, 1)
        figures["share_of_copy"] = round(speed / report["copy_gb_per_s"], 3)
    return report


def is_native(subject: Subject) -> bool:
    return subject.session.engine.manifest.dialect == NATIVE.name


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engines", nargs="+", type=Path)
    parser.add_argument("--lengths", default="127", help="tokens of text before the steps")
    parser.add_argument("--rows", default="1,2,3,4,6,8,12,16,32")
    parser.add_argument("--isas", help="of the native operators, such as avx512-vnni,avx2")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    subjects = open_subjects(args)
    report = report_of(args, subjects)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
