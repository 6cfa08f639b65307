"""Time by operator, where ONNX Runtime executes the steps."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime as ort

from bita.adapter import Adapter
from bita.calibration.profiling.recorder import Span
from bita.engine import ADAPTER_FILE, Engine
from bita.runtime.backends.layout import Layout
from bita.runtime.backends.ort_backend import OrtBackend

WARM_UP, RUNS = 5, 20


def operator_times(
    engine: Engine, layouts: dict[str, Layout], num_threads: int
) -> tuple[dict[str, Any], list[Span]]:
    """Per layout: mean ms a step of each kind of operator, most first; and the spans of one step.

    Runs on the CPU, in a session of its own, since writing down every operator takes time too:
    shares are to be looked at, not sums.
    """
    report, spans = {}, []
    for name, layout in layouts.items():
        events = _events(engine, layout, num_threads)
        totals, counts = Counter[str](), Counter[str]()
        for event in events:
            totals[event["args"]["op_name"]] += event["dur"] / 1000 / RUNS
            counts[event["args"]["op_name"]] += 1
        whole = sum(totals.values())
        report[name] = {
            "rows": layout.num_rows,
            "operators": [
                {
                    "operator": kind,
                    "ms": round(ms, 4),
                    "share": round(ms / whole, 4),
                    "calls": round(counts[kind] / RUNS),
                }
                for kind, ms in totals.most_common()
            ],
        }
        spans += _spans(events[-(len(events) // RUNS) :], name)
    return report, spans


def _events(engine: Engine, layout: Layout, num_threads: int) -> list[dict[str, Any]]:
    """Operators of the steps that count."""
    with tempfile.TemporaryDirectory() as folder:
        backend = OrtBackend(engine, num_threads, profile_to=Path(folder) / "ort")
        adapter = Adapter.load(engine.file(ADAPTER_FILE))
        backend.cache.start(adapter)
        backend.cache.length = min(256, backend.cache.capacity - layout.num_rows - 64)
        step = backend.bind(layout, adapter)
        for _ in range(WARM_UP + RUNS):
            step.run()
        events = json.loads(Path(backend.end_profile()).read_text(encoding="utf-8"))
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
