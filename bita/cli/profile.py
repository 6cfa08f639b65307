"""`bita profile`: a profile of an engine's time on this device."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bita.cli.shared.flags import add_backend, add_command, add_threads, not_negative, positive
from bita.cli.shared.output import print_table
from bita.errors import BitaError
from bita.files import write_whole

if TYPE_CHECKING:
    from bita.calibration.profiling.figures import EngineReport, PrefillLatency, StepLatency
    from bita.calibration.profiling.measure import ProfileOptions


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "profile",
        "measure how an engine spends its time on this device, in figures and charts",
        "bita profile engines/smollm2-135m-instruct-int4 --page profile.html",
        stdout="tables and the names of the files written; progress goes to standard error",
    )
    parser.add_argument("engine", type=Path, help="engine directory")
    parser.add_argument(
        "other", type=Path, nargs="?", help="an engine to compare it with; measurements alternate"
    )
    parser.add_argument(
        "--page", type=Path, help="write an HTML page of charts (needs the extra profile)"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--trace", type=Path, help="write a trace for Perfetto or chrome://tracing")
    parser.add_argument(
        "--prompts",
        type=Path,
        help="JSONL file, with `category` or without; default: that of bita-edge",
    )
    parser.add_argument(
        "--limit", type=positive, help="number of prompts, spread evenly over the file"
    )
    parser.add_argument(
        "--max-new-tokens", type=positive, default=96, help="length of each answer (default 96)"
    )
    parser.add_argument(
        "--max-seconds",
        type=positive,
        help="end after this time plus at most the measurement that is running then, usually the "
        "answers to one prompt; the report lists what is left out. Default: no bound",
    )
    parser.add_argument(
        "--latency-seconds",
        type=not_negative,
        default=20,
        help="time for the steps of each engine, warm-up included (default 20); 0: as long as one "
        "round of all sizes takes",
    )
    parser.add_argument("--max-rows", type=positive, default=64, help="largest step (default 64)")
    add_backend(parser)
    add_threads(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bita.calibration.profiling.measure import ProfileOptions, profile_engines
    from bita.calibration.profiling.recorder import write_trace
    from bita.calibration.profiling.time_bound import TimeBound
    from bita.cli.shared.progress import progress_bars
    from bita.data.prompts import evenly, read_questions
    from bita.runtime.session import Session

    if args.page:
        import bita.calibration.profiling.page as page
    bound = TimeBound(args.max_seconds)
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
    for path in paths:  # untimed, so that its files are in the page cache
        Session.open(path, num_threads=args.threads, backend=args.backend)
    questions = evenly(read_questions(args.prompts), args.limit)
    print(_plan(options, len(paths), len(questions)), file=sys.stderr)
    with progress_bars(announces=True) as show:
        profiles = profile_engines(paths, questions, options, show, bound)
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
    """Say what is measured, and for how long."""
    seconds = options.latency_seconds
    steps = f"at most {seconds:g} s" if seconds else "one round of all sizes"
    engines = "2 engines, alternately" if num_engines == 2 else "the engine"
    return (
        f"measuring {engines}: steps ({steps} each), prompts, {num_questions} answers of up to "
        f"{options.max_new_tokens} tokens with and without drafts, operators, memory"
    )


def _check_writable(out: Path) -> None:
    """Raise BitaError, before minutes of measuring, if `out` cannot be written."""
    if out.is_dir():
        raise BitaError(f"{out} is a directory; give the name of a file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise BitaError(f"cannot write {out}: {error.strerror}; give another path") from error


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
    from bita.calibration.profiling.summary import summary_of

    columns = [summary_of(report) for report in reports]
    rows = [(label, *(column[label] for column in columns)) for label in columns[0]]
    print_table(("", *names), rows, boxed=False)
    for report, name in zip(reports, names, strict=True):
        _print_steps(name, report.latency)
        _print_prefill(name, report.prefill)
        for label, step in report.operators.items():
            most = ", ".join(f"{each.operator} {each.share:.0%}" for each in step.operators[:5])
            print(f"{name}, {label}: {most}")
        if report.left_out:
            print(f"{name}, left out: {'; '.join(report.left_out)}")


def _print_steps(name: str, latency: "StepLatency") -> None:
    """Print a row for each size of a step."""
    heads = [f"ms after {length} tokens" for length in latency.cache_lengths]
    rows = [
        (
            number_of_rows,
            *(
                " / ".join(f"{times[length][size]:.2f}" for times in latency.by_percentile.values())
                for length in range(len(heads))
            ),
        )
        for size, number_of_rows in enumerate(latency.rows)
    ]
    caption = f"p50 / p90 / p99 of {latency.runs} runs or more"
    print_table((f"{name}: rows", *heads), rows, caption=caption, boxed=False)


def _print_prefill(name: str, prefill: "PrefillLatency") -> None:
    """Print a row for each length of a prompt."""
    rows = [
        (
            size,
            " / ".join(f"{times[place]:.1f}" for times in prefill.by_percentile.values()),
            f"{prefill.tokens_per_second[place]:.0f}",
        )
        for place, size in enumerate(prefill.tokens)
    ]
    header = (f"{name}: prompt of", "ms", "tokens/s")
    print_table(header, rows, caption=f"p50 / p90 / p99 of {prefill.runs} runs", boxed=False)
