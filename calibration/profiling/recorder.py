"""Record the phases of steps and write them as a trace for Chrome and Perfetto."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bita.files import write_whole


@dataclass(frozen=True)
class Span:
    """A phase of a step, or an operator."""

    name: str
    began: float  # seconds of `time.perf_counter`
    ended: float  # seconds of `time.perf_counter`
    track: str = "decode round"  # name of the line it is shown on
    details: dict[str, Any] = field(default_factory=dict)  # shown when the span is selected


class Recorder:
    """Records spans of a session's steps at a cost of about a microsecond per step."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, float, float, int]] = []

    def add(self, name: str, began: float, ended: float, num_rows: int) -> None:
        """Record a phase of a step."""
        self._parts.append((name, began, ended, num_rows))

    @property
    def spans(self) -> list[Span]:
        """Recorded phases."""
        return [
            Span(name, began, ended, details={"rows": num_rows})
            for name, began, ended, num_rows in self._parts
        ]


def shift(spans: list[Span], by: float) -> list[Span]:
    """Return the spans, `by` seconds later."""
    return [replace(span, began=span.began + by, ended=span.ended + by) for span in spans]


def trace_events(spans: list[Span]) -> dict[str, Any]:
    """Return the spans in Chrome's trace format, with times relative to the first one."""
    start = min((span.began for span in spans), default=0.0)
    tracks = {track: number for number, track in enumerate(dict.fromkeys(s.track for s in spans))}
    names = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": track}}
        for track, number in tracks.items()
    ]
    events = [
        {
            "name": span.name,
            "ph": "X",
            "pid": 1,
            "tid": tracks[span.track],
            "ts": round(1e6 * (span.began - start), 3),
            "dur": round(1e6 * (span.ended - span.began), 3),
            "args": span.details,
        }
        for span in spans
    ]
    return {"traceEvents": [*names, *events], "displayTimeUnit": "ms"}


def write_trace(spans: list[Span], path: Path) -> None:
    """Write a trace file atomically."""
    write_whole(path, json.dumps(trace_events(spans)))
