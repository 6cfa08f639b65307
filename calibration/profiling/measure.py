"""The measurements behind `bita profile`, each in figures that JSON holds."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bita.calibration.latency import describe_device
from bita.calibration.memory import measure_memory
from bita.calibration.profiling.operators import operator_times
from bita.calibration.profiling.recorder import Recorder, Span
from bita.calibration.profiling.sensors import Sensors, summary
from bita.calibration.step_times import lengths_of, sizes_of, time_steps, timed_rounds
from bita.engine import open_engine
from bita.errors import PromptError
from bita.runtime.backends.backend import Step
from bita.runtime.backends.layout import prefill_layout, tree_layout
from bita.runtime.session import Prompt, Session
from bita.tree import Tree
from bita.tree_table import TreeTable

PERCENTILES = (50, 90, 99)
WARM_UP, MIN_RUNS = 4, 20  # runs of a step each time it is its turn
PREFILL_TOKENS = (16, 64, 128, 256, 512, 1024, 1536)
PREFILL_RUNS = 5
FILLED = (0.0625, 0.5, 0.9)  # of the cache
Show = Callable[[str, int, int], None]
Report = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A prompt and the category that it is counted in."""

    prompt: Prompt
    category: str


@dataclass(frozen=True)
class ProfileOptions:
    """What is measured, and for how long."""

    max_new_tokens: int = 96  # of each answer
    latency_seconds: float = 20.0  # for all steps of one engine
    most_rows: int = 64  # of the largest step
    num_threads: int = 0  # 0: one per physical core
    backend: str | None = None  # None: what the engine was built for
    with_trace: bool = False


@dataclass
class Profiled:
    """One engine's session while it is measured. report: what is known so far."""

    path: Path
    session: Session
    plain: Session
    report: Report
    recorder: Recorder | None = None
    operator_spans: list[Span] = field(default_factory=list)


def profile(
    paths: Sequence[Path], questions: Sequence[Question], options: ProfileOptions, show: Show
) -> list[Profiled]:
    """Measure one engine, or two by turns. Raises EngineError, PromptError."""
    with Sensors() as sensors:
        engines = [_opened(path, options) for path in paths]
        for engine in engines:
            engine.report["latency"] = step_latency(engine.session, options, show)
        for engine in engines:
            engine.report["prefill"] = prefill_latency(engine.session, show)
        decode(engines, questions, options, sensors, show)
        for number, engine in enumerate(engines):
            show("operators and memory", number, len(engines))
            _operators(engine, options)
            memory = measure_memory(engine.path, options.num_threads)
            engine.report["memory"] = {**memory, "engine_bytes": engine.session.engine.num_bytes}
    for engine in engines:
        engine.report["sensors"] = {
            "samples": sensors.samples,
            "summary": summary(sensors.samples),
        }
    return engines


def _opened(path: Path, options: ProfileOptions) -> Profiled:
    """Load it, and take the time until its first token."""
    began = perf_counter()
    session = Session.open(path, num_threads=options.num_threads, backend=options.backend)
    opened = perf_counter()
    session.generate(list(range(3, 19)), 1, ignore_eos=True)
    first = perf_counter()
    manifest = session.engine.manifest
    report: Report = {
        "engine": str(path),
        "model": manifest.model,
        "precision": manifest.precision,
        "backend": options.backend or manifest.backend,
        "mode": session.mode,
        "tree": str(session.tree),
        "capacity": manifest.capacity,
        "device": describe_device(options.num_threads),
        "start_up": {
            "open_ms": round(1000 * (opened - began), 2),
            "first_token_ms": round(1000 * (first - began), 2),
        },
    }
    plain = session.using(tree=Tree.root_only(), min_rows=1)
    recorder = Recorder() if options.with_trace else None
    return Profiled(path, session, plain, report, recorder)


def step_latency(session: Session, options: ProfileOptions, show: Show) -> Report:
    """Percentiles in ms of single steps, [length][rows], sizes and lengths in random order."""
    backend, adapter = session.backend, session.adapter
    rows, slots = sizes_of(session.engine, options.most_rows), backend.cache.capacity
    room = slots - adapter.prefix_length - max(rows[-1], backend.least_slots)
    lengths = lengths_of(FILLED, slots, room)
    rounds = timed_rounds(options.latency_seconds, partial(show, "steps"))
    with session.lock:
        times = time_steps(backend, adapter, rows, lengths, rounds, _single_runs)
    curves = np.percentile(times, PERCENTILES, axis=-1).round(4).tolist()
    return {
        "rows": rows,
        "cache_lengths": lengths,
        "runs": times.shape[-1],
        **{f"p{each}_ms": curve for each, curve in zip(PERCENTILES, curves, strict=True)},
    }


def _single_runs(step: Step) -> list[float]:
    """ms of single runs that follow a few that do not count."""
    for _ in range(WARM_UP):
        step.run()
    return [_timed(step) for _ in range(MIN_RUNS)]


def _timed(step: Step) -> float:
    """ms of one run."""
    began = perf_counter()
    step.run()
    return 1000 * (perf_counter() - began)


def prefill_latency(session: Session, show: Show) -> Report:
    """Percentiles in ms from a prompt of so many tokens to its first token."""
    sizes = [size for size in PREFILL_TOKENS if size <= session.max_prompt_tokens]
    rng = np.random.default_rng(0)
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for run in range(PREFILL_RUNS + 1):
        show("prefill", run, PREFILL_RUNS + 1)
        for size in sizes:
            ids = rng.integers(3, session.engine.manifest.vocab_size, size).tolist()
            session.forget()
            session.reset_stats()
            session.generate(ids, 1, ignore_eos=True)
            if run:
                times[size].append(session.stats.prefill_ms)
    medians = [statistics.median(times[size]) for size in sizes]
    return {
        "tokens": sizes,
        "runs": PREFILL_RUNS,
        **{f"p{each}_ms": [_at(times[size], each) for size in sizes] for each in PERCENTILES},
        "tokens_per_second": [
            round(1000 * size / ms, 1) for size, ms in zip(sizes, medians, strict=True)
        ],
    }


def decode(
    engines: Sequence[Profiled],
    questions: Sequence[Question],
    options: ProfileOptions,
    sensors: Sensors,
    show: Show,
) -> None:
    """Answers by AR and by the engine's trees, all taking turns."""
    ways = [
        (engine, name, session)
        for engine in engines
        for name, session in (("AR", engine.plain), ("trees", engine.session))
    ]
    answers: Mapping[tuple[int, str], list[Report]] = defaultdict(list)
    for engine, _, session in ways:
        session.generate(questions[0].prompt, 16)
        if engine.recorder is not None and session is engine.session:
            session.record(engine.recorder.add)
    for number, question in enumerate(questions):
        show("answers", number, len(questions))
        for turn in range(len(ways)):
            engine, name, session = ways[(number + turn) % len(ways)]
            answer = _answered(session, question, options.max_new_tokens, sensors)
            answers[id(engine), name].append(answer)
    for engine in engines:
        engine.session.record(None)
        engine.report["decode"] = {
            name: _summed(answers[id(engine), name]) for name in ("AR", "trees")
        }


def _answered(session: Session, question: Question, limit: int, sensors: Sensors) -> Report:
    session.forget()
    session.reset_stats()
    started = sensors.seconds()
    answer = session.generate(question.prompt, limit)
    stats = session.stats
    return {
        "category": question.category,
        "seconds": round(started, 3),
        "prompt_tokens": len(answer.prompt_ids),
        "first_token_ms": round(stats.prefill_ms, 3),
        "tokens": stats.num_tokens,
        "steps": stats.num_steps,
        "tokens_per_second": round(stats.tokens_per_second, 2),
        "step_ms": [round(ms, 4) for ms in stats.step_ms],
        "backend_ms": [round(ms, 4) for ms in stats.backend_ms],
    }


def _summed(answers: Sequence[Report]) -> Report:
    """Figures of all answers, and each of them without its steps."""
    steps = [ms for answer in answers for ms in answer["step_ms"]]
    backend = sum(ms for answer in answers for ms in answer["backend_ms"])
    tokens = sum(answer["tokens"] for answer in answers)
    if not steps:
        raise PromptError("every answer ended with its first token; give other prompts")
    first = [answer["first_token_ms"] for answer in answers]
    categories: dict[str, list[Report]] = defaultdict(list)
    for answer in answers:
        categories[answer["category"]].append(answer)
    speeds = [answer["tokens_per_second"] for answer in answers if answer["steps"]]
    quarter = max(len(speeds) // 4, 1)
    return {
        "tokens": tokens,
        "steps": len(steps),
        "tokens_per_step": round(tokens / len(steps), 4),
        "tokens_per_second": round(1000 * tokens / sum(steps), 2),
        "step_ms": {f"p{each}": _at(steps, each) for each in PERCENTILES},
        "first_token_ms": {f"p{each}": _at(first, each) for each in PERCENTILES},
        "host_ms_per_step": round((sum(steps) - backend) / len(steps), 4),
        "backend_ms_per_step": round(backend / len(steps), 4),
        "drift": round(
            statistics.median(speeds[-quarter:]) / statistics.median(speeds[:quarter]), 4
        ),
        "by_category": {
            name: {
                "answers": len(group),
                "tokens_per_step": round(
                    sum(a["tokens"] for a in group) / max(sum(a["steps"] for a in group), 1), 4
                ),
                "tokens_per_second": round(
                    1000
                    * sum(a["tokens"] for a in group)
                    / max(sum(sum(a["step_ms"]) for a in group), 1e-9),
                    2,
                ),
            }
            for name, group in categories.items()
        },
        "answers": [
            {key: value for key, value in answer.items() if not key.endswith("_ms")}
            | {"first_token_ms": answer["first_token_ms"]}
            for answer in answers
        ],
    }


def _operators(engine: Profiled, options: ProfileOptions) -> None:
    """Of a decode step of the largest tree and of a piece of a prompt, where they can be told."""
    manifest = engine.session.engine.manifest
    if (options.backend or manifest.backend) != "ort-cpu":
        engine.report["operators"] = {}
        return
    trees = TreeTable.of(engine.session.tree).trees
    largest = max(trees, key=lambda tree: tree.num_rows)
    prompt = min(engine.session.backend.prefill_rows, manifest.capacity // 2)
    layouts = {"AR step": tree_layout(Tree.root_only(), 1)}
    if largest.num_rows > 1:
        layouts[f"tree step of {largest.num_rows} rows"] = tree_layout(largest, 1)
    layouts[f"prefill of {prompt} tokens"] = prefill_layout(prompt, 0, 1)
    engine.report["operators"], engine.operator_spans = operator_times(
        open_engine(engine.path), layouts, options.num_threads
    )


def _at(values: Sequence[float], percentile: float) -> float:
    return round(float(np.percentile(values, percentile)), 4)
