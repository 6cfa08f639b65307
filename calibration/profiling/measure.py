"""Takes the measurements that `bita profile` reports."""

from collections.abc import Sequence
from dataclasses import dataclass
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
from bita.calibration.profiling.operators import time_operators
from bita.calibration.profiling.recorder import Recorder, Span, shifted
from bita.calibration.profiling.sensors import Sensors, summary
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
WARM_UP_TOKENS = 16  # of an answer


@dataclass(frozen=True)
class ProfileOptions:
    """What is measured, and for how long."""

    max_new_tokens: int = 96  # of each answer
    latency_seconds: float = 20.0  # for all steps of an engine, warm-up included; 0: a turn each
    max_rows: int = 64  # of the largest step
    num_threads: int = 0  # 0: one per physical core
    backend: str | None = None  # None: what the engine was built for
    with_trace: bool = False  # record the parts of each decode step


@dataclass(frozen=True)
class Profile:
    """What `bita profile` knows of one engine."""

    report: EngineReport
    spans: list[Span]  # of all decode steps, if they were recorded, then of single operators


@dataclass(frozen=True)
class OpenedEngine:
    """An engine while it is measured."""

    facts: EngineFacts
    session: Session  # decodes with the engine's trees
    plain: Session  # decodes without drafts, a row a step
    recorder: Recorder | None  # of the steps with trees; None: they are not recorded


def profile_engines(
    paths: Sequence[Path], questions: Sequence[Question], options: ProfileOptions, show: OnProgress
) -> list[Profile]:
    """Measure one engine, or two in turns. Raises EngineError, PromptError."""
    with Sensors() as sensors:
        engines = []
        for number, path in enumerate(paths):
            show("opening", number, len(paths))
            engines.append(_open(path, options))
        latencies = [step_latency(engine.session, options, show) for engine in engines]
        prefills = [prefill_latency(engine.session, show) for engine in engines]
        decodings = _decode(engines, questions, options.max_new_tokens, sensors, show)
        operators, memories = [], []
        for number, engine in enumerate(engines):
            show("operators and memory", number, len(engines))
            operators.append(_operators(engine, options.num_threads))
            memories.append(_memory(engine.session.engine, options.num_threads))
    device = SensorFigures(sensors.samples, summary(sensors.samples))
    measured = zip(engines, latencies, prefills, decodings, operators, memories, strict=True)
    return [
        Profile(
            EngineReport(engine.facts, latency, prefill, decoding, steps, memory, device),
            _spans(engine.recorder, operator_spans),
        )
        for engine, latency, prefill, decoding, (steps, operator_spans), memory in measured
    ]


def _open(path: Path, options: ProfileOptions) -> OpenedEngine:
    """Load an engine, and take the time until its first token."""
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


def step_latency(session: Session, options: ProfileOptions, show: OnProgress) -> StepLatency:
    """Percentiles of single steps of every size at several lengths of the text."""
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
    with session.lock:
        backend.cache.start(adapter)
        times = BoundedTimer(len(lengths), len(rows), bind, seconds, show_steps).measure()
        backend.cache.start(adapter)
    p50, p90, p99 = times.percentiles(PERCENTILES)
    return StepLatency([rows[size] for size in times.sizes], lengths, times.runs, p50, p90, p99)


def prefill_latency(session: Session, show: OnProgress) -> PrefillLatency:
    """Percentiles of the time from a prompt to its first token, after a round that does not count.

    The prompts are random tokens.
    """
    sizes = [size for size in PREFILL_TOKENS if size <= session.max_prompt_tokens]
    rng = np.random.default_rng(0)
    times = np.zeros((PREFILL_RUNS + 1, len(sizes)))
    for run in range(PREFILL_RUNS + 1):
        show("prefill", run, PREFILL_RUNS + 1)
        for place, size in enumerate(sizes):
            ids = rng.integers(3, session.engine.manifest.vocab_size, size).tolist()
            session.forget()
            session.reset_stats()
            session.generate(ids, 1, ignore_eos=True)
            times[run, place] = session.stats.prefill_ms
    p50, p90, p99 = np.percentile(times[1:], PERCENTILES, axis=0).round(4).tolist()
    speeds = 1000 * np.array(sizes) / np.median(times[1:], axis=0)
    return PrefillLatency(sizes, PREFILL_RUNS, p50, p90, p99, speeds.round(1).tolist())


def _decode(
    engines: Sequence[OpenedEngine],
    questions: Sequence[Question],
    max_new_tokens: int,
    sensors: Sensors,
    show: OnProgress,
) -> list[dict[str, Decoding]]:
    """Answers of each engine by AR and by its trees, all in turns."""
    sessions = [session for engine in engines for session in (engine.plain, engine.session)]
    for number, session in enumerate(sessions):
        show("warm-up", number, len(sessions))
        session.generate(session.as_prompt(questions[0].messages), WARM_UP_TOKENS)
    for engine in engines:
        if engine.recorder is not None:
            engine.session.record(engine.recorder.add)
    decodings = time_answers(
        sessions, questions, max_new_tokens, sensors.seconds, partial(show, "answers")
    )
    for engine in engines:
        engine.session.record(None)
    return [
        {AR: ar, TREES: trees} for ar, trees in zip(decodings[::2], decodings[1::2], strict=True)
    ]


def _operators(
    opened: OpenedEngine, num_threads: int
) -> tuple[dict[str, StepOperators], list[Span]]:
    """Operators of an AR step, a step of the largest tree and a piece of a prompt; none unless
    ONNX Runtime executes them on the CPU.
    """
    if opened.facts.backend != "ort-cpu":
        return {}, []
    session = opened.session
    largest = max(TreeTable.of(session.tree).trees, key=lambda tree: tree.num_rows)
    prompt = min(session.backend.prefill_rows, opened.facts.capacity // 2)
    layouts = {"AR step": tree_layout(Tree.root_only(), 1)}
    if largest.num_rows > 1:
        layouts[f"tree step of {largest.num_rows} rows"] = tree_layout(largest, 1)
    layouts[f"prefill of {prompt} tokens"] = prefill_layout(prompt, 0, 1)
    return time_operators(session.engine, layouts, num_threads)


def _memory(engine: Engine, num_threads: int) -> MemoryUse:
    memory = measure_memory(engine.path, num_threads)
    return MemoryUse(memory.at_load, memory.decoding, engine.num_bytes)


def _spans(recorder: Recorder | None, operators: list[Span]) -> list[Span]:
    """The recorded steps, and the operators as if they began with them."""
    steps = recorder.spans if recorder else []
    return steps + shifted(operators, steps[0].began if steps else 0.0)
