"""`bita profile`: where an engine's time goes on this device."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bita.cli.shared.flags import add_backend, add_command, add_threads, not_negative, positive
from bita.errors import BitaError
from bita.files import write_whole

if TYPE_CHECKING:
    from rich.table import Table

    from bita.calibration.profiling.figures import EngineReport, PrefillLatency, StepLatency
    from bita.calibration.profiling.measure import ProfileOptions


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "profile",
        "measure where an engine's time goes on this device, in figures and charts",
        "bita profile engines/smollm2-135m-instruct-int4 --page profile.html",
    )
    parser.add_argument("engine", type=Path, help="engine directory")
    parser.add_argument(
        "other", type=Path, nargs="?", help="an engine to compare it with, by turns"
    )
    parser.add_argument("--page", type=Path, help="HTML page of charts (needs the extra profile)")
    parser.add_argument("--json", type=Path, help="all figures")
    parser.add_argument("--trace", type=Path, help="trace for Perfetto or chrome://tracing")
    parser.add_argument(
        "--prompts", type=Path, help="JSONL file, with `category` or without; default: our own"
    )
    parser.add_argument("--limit", type=positive, help="prompts, taken from all over the file")
    parser.add_argument("--max-new-tokens", type=positive, default=96)
    parser.add_argument(
        "--latency-seconds",
        type=not_negative,
        default=20,
        help="for the steps of each engine, warm-up included (default 20); 0: one turn each",
    )
    parser.add_argument("--max-rows", type=positive, default=64, help="of the largest step")
    add_backend(parser)
    add_threads(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bita.calibration.profiling.measure import ProfileOptions, profile_engines
    from bita.calibration.profiling.recorder import write_trace
    from bita.cli.shared.progress import progress_bars
    from bita.data.prompts import evenly, read_questions
    from bita.runtime.session import Session

    if args.page:
        import bita.calibration.profiling.page as page
    paths = [args.engine, args.other] if args.other else [args.engine]
    for out in (args.page, args.json, args.trace):
        if out:
            _check_writable(out)
    options = ProfileOptions(
        max_new_tokens=args.max_new_tokens,
        latency_seconds=args.latency_seconds,
        max_rows=args.max_rows,
        num_threads=args.threads,
        backend=args.backend,
        with_trace=args.trace is not None,
    )
    for path in paths:  # once before it is timed, so that its files are in the page cache
        Session.open(path, num_threads=args.threads, backend=args.backend)
    questions = evenly(read_questions(args.prompts), args.limit)
    print(_plan(options, len(paths), len(questions)), file=sys.stderr)
    with progress_bars() as show:
        profiles = profile_engines(paths, questions, options, show)
    reports = [profile.report for profile in profiles]
    names = _names(paths)
    _print(reports, names)
    if args.json:
        _write_json(reports, args.json)
        print(f"figures: {args.json}")
    if args.page:
        page.write_page(reports, names, args.page)
        print(f"charts: {args.page}")
    if args.trace:
        write_trace([span for profile in profiles for span in profile.spans], args.trace)
        print(f"trace: {args.trace} (ui.perfetto.dev or chrome://tracing)")
    return 0


def _plan(options: "ProfileOptions", num_engines: int, num_questions: int) -> str:
    """What is measured, and what bounds it."""
    seconds = options.latency_seconds
    steps = f"at most {seconds:g} s" if seconds else "one turn of each size"
    engines = "2 engines by turns" if num_engines == 2 else "the engine"
    return (
        f"measuring {engines}: steps ({steps} each), prompts, {num_questions} answers of up to "
        f"{options.max_new_tokens} tokens by AR and by trees, operators, memory"
    )


def _check_writable(out: Path) -> None:
    """Before minutes of measuring; raises BitaError."""
    if out.is_dir():
        raise BitaError(f"{out} is a directory; give a file's name")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise BitaError(f"cannot write {out}: {error.strerror}; give another place") from error


def _names(paths: Sequence[Path]) -> list[str]:
    names = [path.absolute().name for path in paths]
    return names if len({*names}) == len(names) else [str(path) for path in paths]


def _write_json(reports: "Sequence[EngineReport]", path: Path) -> None:
    engines = [report.to_json() for report in reports]
    try:
        text = json.dumps({"engines": engines}, indent=1, allow_nan=False) + "\n"
    except ValueError as error:
        raise BitaError("a figure is not a finite number; profile again") from error
    write_whole(path, text)


def _print(reports: "Sequence[EngineReport]", names: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from bita.calibration.profiling.summary import summary_of

    console = Console()
    table = Table("", *names, box=None, pad_edge=False)
    columns = [summary_of(report) for report in reports]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    console.print(table)
    for report, name in zip(reports, names, strict=True):
        console.print(_step_table(name, report.latency))
        console.print(_prefill_table(name, report.prefill))
        for label, step in report.operators.items():
            most = ", ".join(f"{each.operator} {each.share:.0%}" for each in step.operators[:5])
            console.print(f"{name}, {label}: {most}")


def _step_table(name: str, latency: "StepLatency") -> "Table":
    """A row for each size of a step."""
    from rich.table import Table

    heads = [f"ms after {length} tokens" for length in latency.cache_lengths]
    table = Table(f"{name}: rows", *heads, box=None, pad_edge=False)
    for size, rows in enumerate(latency.rows):
        cells = [
            " / ".join(f"{times[length][size]:.2f}" for times in latency.by_percentile.values())
            for length in range(len(heads))
        ]
        table.add_row(str(rows), *cells)
    table.caption = f"p50 / p90 / p99 of {latency.runs} runs or more"
    return table


def _prefill_table(name: str, prefill: "PrefillLatency") -> "Table":
    """A row for each length of a prompt."""
    from rich.table import Table

    table = Table(f"{name}: prompt of", "ms", "tokens/s", box=None, pad_edge=False)
    for place, size in enumerate(prefill.tokens):
        times = " / ".join(f"{times[place]:.1f}" for times in prefill.by_percentile.values())
        table.add_row(str(size), times, f"{prefill.tokens_per_second[place]:.0f}")
    table.caption = "p50 / p90 / p99"
    return table
