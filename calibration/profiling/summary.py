"""The first table of a profile, on the screen and on the page."""

from collections.abc import Callable, Mapping
from typing import Any

Report = Mapping[str, Any]


def summary_rows() -> tuple[tuple[str, Callable[[Report], str]], ...]:
    """What is told first of an engine: a label, and the text of a report."""
    return ROWS


def _speed(report: Report, way: str) -> str:
    return f"{report['decode'][way]['tokens_per_second']:.1f}"


def _spread(values: Mapping[str, float]) -> str:
    return " / ".join(f"{values[name]:.2f}" for name in ("p50", "p90", "p99"))


ROWS: tuple[tuple[str, Callable[[Report], str]], ...] = (
    ("model", lambda r: str(r["model"])),
    ("precision, backend", lambda r: f"{r['precision']}, {r['backend']}"),
    ("tree, mode", lambda r: f"{r['tree']}, {r['mode']}"),
    ("tokens/s, AR in one row", lambda r: _speed(r, "AR")),
    ("tokens/s, trees", lambda r: _speed(r, "trees")),
    ("tokens per step", lambda r: f"{r['decode']['trees']['tokens_per_step']:.3f}"),
    ("ms a step, p50 / p90 / p99, AR", lambda r: _spread(r["decode"]["AR"]["step_ms"])),
    ("ms a step, p50 / p90 / p99, trees", lambda r: _spread(r["decode"]["trees"]["step_ms"])),
    (
        "ms to first token, p50 / p90 / p99",
        lambda r: _spread(r["decode"]["trees"]["first_token_ms"]),
    ),
    ("ms from opening to the first token", lambda r: f"{r['start_up']['first_token_ms']:.0f}"),
    ("host ms a step", lambda r: f"{r['decode']['trees']['host_ms_per_step']:.3f}"),
    (
        "last quarter's speed over the first's, AR / trees",
        lambda r: " / ".join(f"{r['decode'][way]['drift']:.3f}" for way in ("AR", "trees")),
    ),
    (
        "memory peak, MB (GPU)",
        lambda r: (
            f"{r['memory']['decoding']['host'] / 1e6:.0f} "
            f"({r['memory']['decoding']['gpu'] / 1e6:.0f})"
        ),
    ),
    ("engine on disk, MB", lambda r: f"{r['memory']['engine_bytes'] / 1e6:.0f}"),
)
