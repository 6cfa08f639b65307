"""Take the measurements that `bita profile` reports."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from bita.calibration.latency import describe_device
from bita.calibration.memory import measure_memory
from bita.calibration.profiling.answer_times import time_answers
from bita.calibration.profiling.bounded_steps import BoundedTimer
from bita.calibration.profiling.figures import (
    AR,
    PERCENTILES,
    TREES,
    Decoding,
    EngineFacts,
    EngineReport,
    MemoryUse,
    PrefillLatency,
    SensorFigures,
    StartUp,
    StepLatency,
    StepOperators,
)
from bita.calibration.profiling.operators import RUNS, WARM_UP, time_operators
from bita.calibration.profiling.recorder import Recorder, Span, shift
from bita.calibration.profiling.sensors import Sensors, summary
from bita.calibration.profiling.time_bound import PREFILL_END, STEPS_END, TimeBound
from bita.calibration.step_times import lengths_of, sizes_of, tree_of
from bita.data.prompts import Question
from bita.engine import Engine
from bita.progress import OnProgress
from bita.runtime.backends.backend import Step
from bita.runtime.backends.layout import prefill_layout, tree_layout
from bita.runtime.session import Session
from bita.tree import Tree
from bita.tree_table import TreeTable

FILLED = (0.0625, 0.5, 0.9)  # shares of the cache that the text takes
PREFILL_TOKENS = (16, 64, 128, 256, 512, 1024, 1536)
PREFILL_RUNS = 5
WARM_UP_TOKENS = 16  # of the warm-up answer
OPERATOR_STEPS = WARM_UP + RUNS  # of each kind that is timed
MIN_SECONDS = 0.001  # for steps when no time is left, so that they are measured once
UNBOUNDED = TimeBound()


@dataclass(frozen=True)
class ProfileOptions:
    """Options of a profile."""

    max_new_tokens: int = 96  # limit of each answer
    latency_seconds: float = 20.0  # for all steps of an engine; 0 for one whole turn of each
    max_rows: int = 64  # of the largest step
    num_threads: int = 0  # 0 for one per physical core
    backend: str | None = None  # None takes the one that the engine was built for
    with_trace: bool = False  # whether to record the phases of each decode step


@dataclass(frozen=True)
class Profile:
    """Profile of one engine."""

    report: EngineReport
    spans: list[Span]  # of all decode steps if they were recorded, then of operators


@dataclass(frozen=True)
class OpenedEngine:
    """An engine that is being measured."""

    facts: EngineFacts
    session: Session  # decodes with the engine's trees
    plain: Session  # decodes without drafts, one row per step
    recorder: Recorder | None  # of the steps with trees; None if they are not recorded


@dataclass
class _Operators:
    """Times of an engine's operators."""

    figures: dict[str, StepOperators] = field(default_factory=dict)  # by step
    spans: list[Span] = field(default_factory=list)  # of one step each
    left_out: list[str] = field(default_factory=list)  # steps for which there was no time


def profile_engines(
    paths: Sequence[Path],
    questions: Sequence[Question],
    options: ProfileOptions,
    show: OnProgress,
    bound: TimeBound = UNBOUNDED,
) -> list[Profile]:
    """Measure one engine, or several interleaved.

    Measurements that do not fit in the time of `bound` are left out, and each report lists them.
    Raises EngineError, PromptError, or BitaError if there is no time for any answer.
    """
    with Sensors() as sensors:
        engines = []
        for number, path in enumerate(paths):
            show("opening", number, len(paths))
            engines.append(_open(path, options))
        latencies, prefills = [], []
        for number, engine in enumerate(engines, 1):
            bound.require("steps")
            end = STEPS_END * number / len(engines)
            latencies.append(step_latency(engine.session, options, show, bound.left(end)))
        for engine in engines:
            bound.require("prefill")
            prefills.append(prefill_latency(engine.session, show, bound))
        decodings = _decode(engines, questions, options.max_new_tokens, sensors, show, bound)
        operators, memories = [], []
        for number, (engine, latency) in enumerate(zip(engines, latencies, strict=True)):
            show("operators and memory", number, len(engines))
            operators.append(_operators(engine, latency, options.num_threads, bound))
            memories.append(_memory(engine.session.engine, options.num_threads, bound))
    device = SensorFigures(sensors.samples, summary(sensors.samples))
    measured = zip(engines, latencies, prefills, decodings, operators, memories, strict=True)
    return [
        Profile(
            EngineReport(
                engine.facts,
                latency,
                prefill,
                decoding,
                steps.figures,
                memory,
                device,
                [
                    *_missing_steps(engine.session, latency, options),
                    *_missing_prefills(engine.session, prefill),
                    *_missing_answers(decoding[AR], len(questions)),
                    *steps.left_out,
                    *([] if memory.decoding else ["memory"]),
                ],
            ),
            _spans(engine.recorder, steps.spans),
        )
        for engine, latency, prefill, decoding, steps, memory in measured
    ]


def _open(path: Path, options: ProfileOptions) -> OpenedEngine:
    """Load an engine and measure the time until its first token."""
    began = perf_counter()
    session = Session.open(path, num_threads=options.num_threads, backend=options.backend)
    opened = perf_counter()
    session.generate(list(range(3, 19)), 1, ignore_eos=True)
    first = perf_counter()
    manifest = session.engine.manifest
    facts = EngineFacts(
        engine=str(path),
        model=manifest.model,
        precision=manifest.precision,
        backend=options.backend or manifest.backend,
        mode=session.mode,
        tree=str(session.tree),
        capacity=manifest.capacity,
        device=describe_device(options.num_threads),
        start_up=StartUp(round(1000 * (opened - began), 2), round(1000 * (first - began), 2)),
    )
    plain = session.using(tree=Tree.root_only(), min_rows=1)
    return OpenedEngine(facts, session, plain, Recorder() if options.with_trace else None)


def step_latency(
    session: Session, options: ProfileOptions, show: OnProgress, seconds_left: float = math.inf
) -> StepLatency:
    """Measure percentiles of single steps of every size at several lengths of the text."""
    backend, adapter = session.backend, session.adapter
    rows, slots = sizes_of(session.engine, options.max_rows), backend.cache.capacity
    room = slots - adapter.prefix_length - max(rows[-1], backend.min_slots)
    lengths = lengths_of(FILLED, slots, room)
    steps: dict[int, Step] = {}

    def bind(length: int, size: int) -> Step:
        backend.cache.length = lengths[length]
        if size not in steps:
            layout = tree_layout(tree_of(rows[size], adapter.num_masks), 1)
            steps[size] = backend.bind(layout, adapter)
        return steps[size]

    show_steps, seconds = partial(show, "steps"), options.latency_seconds
    if seconds_left < (seconds or math.inf):
        seconds = max(seconds_left, MIN_SECONDS)
    with session.lock:
        backend.cache.start(adapter)
        times = BoundedTimer(len(lengths), len(rows), bind, seconds, show_steps).measure()
        backend.cache.start(adapter)
    p50, p90, p99 = times.percentiles(PERCENTILES)
    return StepLatency([rows[size] for size in times.sizes], lengths, times.runs, p50, p90, p99)


def prefill_latency(
    session: Session, show: OnProgress, bound: TimeBound = UNBOUNDED
) -> PrefillLatency:
    """Measure percentiles of the time from a prompt of random tokens to its first token.

    The first round is a warm-up and counts only if there is no time for another one.
    """
    sizes = prefill_sizes(session)
    rng = np.random.default_rng(0)
    rounds: list[list[float]] = []
    for run in range(PREFILL_RUNS + 1):
        show("prefill", run, PREFILL_RUNS + 1)
        times: list[float] = []
        for size in sizes:
            if (rounds or times) and bound.left(PREFILL_END) <= 0:
                break
            ids = rng.integers(3, session.engine.manifest.vocab_size, size).tolist()
            session.forget()
            session.reset_stats()
            session.generate(ids, 1, ignore_eos=True)
            times.append(session.stats.prefill_ms)
        if rounds and len(times) < len(sizes):
            break  # a part of a round does not count
        sizes = sizes[: len(times)]
        rounds.append(times)
    counted = np.array(rounds[1:] or rounds)
    p50, p90, p99 = np.percentile(counted, PERCENTILES, axis=0).round(4).tolist()
    speeds = 1000 * np.array(sizes) / np.median(counted, axis=0)
    return PrefillLatency(sizes, len(counted), p50, p90, p99, speeds.round(1).tolist())


def prefill_sizes(session: Session) -> list[int]:
    """Return the lengths of prompts that a profile times."""
    return [size for size in PREFILL_TOKENS if size <= session.max_prompt_tokens]


def _decode(
    engines: Sequence[OpenedEngine],
    questions: Sequence[Question],
    max_new_tokens: int,
    sensors: Sensors,
    show: OnProgress,
    bound: TimeBound,
) -> list[dict[str, Decoding]]:
    """Answer the questions with AR and with trees on each engine, all interleaved."""
    sessions = [session for engine in engines for session in (engine.plain, engine.session)]
    for number, session in enumerate(sessions):
        bound.require("answers")
        show("warm-up", number, len(sessions))
        session.generate(session.as_prompt(questions[0].messages), WARM_UP_TOKENS)
    for engine in engines:
        if engine.recorder is not None:
            engine.session.record(engine.recorder.add)
    bound.require("answers")
    decodings = time_answers(
        sessions, questions, max_new_tokens, sensors.seconds, partial(show, "answers"), bound
    )
    for engine in engines:
        engine.session.record(None)
    return [
        {AR: ar, TREES: trees} for ar, trees in zip(decodings[::2], decodings[1::2], strict=True)
    ]


def _operators(
    opened: OpenedEngine, latency: StepLatency, num_threads: int, bound: TimeBound
) -> _Operators:
    """Time the operators of an AR step, a step of the largest tree, and a piece of a prompt.

    A step that is not expected to fit in the time is left out. The result is empty unless ONNX
    Runtime runs the engine on the CPU.
    """
    timed = _Operators()
    if opened.facts.backend != "ort-cpu":
        return timed
    session = opened.session
    largest = max(TreeTable.of(session.tree).trees, key=lambda tree: tree.num_rows)
    prompt = min(session.backend.prefill_rows, opened.facts.capacity // 2)
    layouts = {"AR step": tree_layout(Tree.root_only(), 1)}
    if largest.num_rows > 1:
        layouts[f"tree step of {largest.num_rows} rows"] = tree_layout(largest, 1)
    layouts[f"prefill of {prompt} tokens"] = prefill_layout(prompt, 0, 1)
    for name, layout in layouts.items():
        if bound.left() < OPERATOR_STEPS * _expected_ms(layout.num_rows, latency) / 1000:
            timed.left_out.append(f"operators of: {name}")
            continue
        figures, spans = time_operators(session.engine, {name: layout}, num_threads)
        timed.figures.update(figures)
        timed.spans.extend(spans)
    return timed


def _expected_ms(num_rows: int, latency: StepLatency) -> float:
    """Estimate the time of a step from the measured ones; beyond the largest, in proportion."""
    measured = float(np.interp(num_rows, latency.rows, latency.p50_ms[0]))
    return measured * max(num_rows / latency.rows[-1], 1)


def _memory(engine: Engine, num_threads: int, bound: TimeBound) -> MemoryUse:
    if bound.is_over:
        return MemoryUse(None, None, engine.num_bytes)
    memory = measure_memory(engine.path, num_threads)
    return MemoryUse(memory.at_load, memory.decoding, engine.num_bytes)


def _spans(recorder: Recorder | None, operators: list[Span]) -> list[Span]:
    """Return the recorded steps, and the operators shifted to begin with them."""
    steps = recorder.spans if recorder else []
    return steps + shift(operators, steps[0].began if steps else 0.0)


def _missing_steps(session: Session, latency: StepLatency, options: ProfileOptions) -> list[str]:
    """Name the sizes of steps that were not timed."""
    missing = {*sizes_of(session.engine, options.max_rows)} - {*latency.rows}
    return [f"steps of rows: {', '.join(map(str, sorted(missing)))}"] if missing else []


def _missing_prefills(session: Session, prefill: PrefillLatency) -> list[str]:
    """Name the lengths of prompts that were not timed, and missing runs of the others."""
    missing = {*prefill_sizes(session)} - {*prefill.tokens}
    found = [f"prefill of tokens: {', '.join(map(str, sorted(missing)))}"] if missing else []
    if prefill.runs < PREFILL_RUNS:
        found.append(f"prefill: {PREFILL_RUNS - prefill.runs} of {PREFILL_RUNS} runs")
    return found


def _missing_answers(decoding: Decoding, num_questions: int) -> list[str]:
    missing = num_questions - len(decoding.answers)
    return [f"answers: {missing} of {num_questions} prompts"] if missing else []
