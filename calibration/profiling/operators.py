"""Measure the time of each operator, if ONNX Runtime runs the steps."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime as ort

from bita.calibration.profiling.figures import OperatorTime, StepOperators
from bita.calibration.profiling.recorder import Span
from bita.engine import Engine
from bita.engine_adapter import read_adapter
from bita.runtime.backends.layout import Layout
from bita.runtime.backends.ort_backend import OrtBackend

WARM_UP, RUNS = 5, 20


def time_operators(
    engine: Engine, layouts: dict[str, Layout], num_threads: int
) -> tuple[dict[str, StepOperators], list[Span]]:
    """Time the operators in a step of each layout, on the CPU in a separate ONNX Runtime session.

    Recording every operator takes time too, so shares are more meaningful than sums.

    Returns:
        The operators of each step by the layout's name, and the spans of one step of each.
    """
    operators: dict[str, StepOperators] = {}
    spans: list[Span] = []
    for name, layout in layouts.items():
        events = _events(engine, layout, num_threads)
        operators[name] = StepOperators(layout.num_rows, _by_kind(events))
        spans += _spans(events[-(len(events) // RUNS) :], name)
    return operators, spans


def _by_kind(events: list[dict[str, Any]]) -> list[OperatorTime]:
    totals, counts = Counter[str](), Counter[str]()
    for event in events:
        totals[event["args"]["op_name"]] += event["dur"] / 1000 / RUNS
        counts[event["args"]["op_name"]] += 1
    whole = sum(totals.values())
    return [
        OperatorTime(kind, round(ms, 4), round(ms / whole, 4), round(counts[kind] / RUNS))
        for kind, ms in totals.most_common()
    ]


def _events(engine: Engine, layout: Layout, num_threads: int) -> list[dict[str, Any]]:
    """Return ONNX Runtime's events of each operator in the steps after the warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        backend = OrtBackend(engine, num_threads, operators_to=Path(folder) / "ort")
        adapter = read_adapter(engine)
        backend.cache.start(adapter)
        backend.cache.length = min(256, backend.cache.capacity - layout.num_rows - 64)
        step = backend.bind(layout, adapter)
        for _ in range(WARM_UP + RUNS):
            step.run()
        events = json.loads(backend.end_operators().read_text(encoding="utf-8"))
    nodes = [
        event
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    return nodes[len(nodes) * WARM_UP // (WARM_UP + RUNS) :]


def _spans(events: list[dict[str, Any]], name: str) -> list[Span]:
    track = f"operators: {name} (ONNX Runtime {ort.__version__})"
    start = min((event["ts"] for event in events), default=0)
    return [
        Span(
            event["args"]["op_name"],
            (event["ts"] - start) / 1e6,
            (event["ts"] - start + event["dur"]) / 1e6,
            track,
            {"node": event["name"].removesuffix("_kernel_time")},
        )
        for event in events
    ]
