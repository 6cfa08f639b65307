"""`bita calibrate`: measure an engine on this device, and choose its tree by that."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bita.calibration.effort import Effort
from bita.cli.shared.flags import add_command, add_threads, positive
from bita.manifest import MODES

STAGES = ("acceptance", "latency", "tree")
MAX_SHOWN = 4  # trees that were not chosen
USUAL = Effort()


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "calibrate",
        "measure an engine on this device, and choose the tree that decodes fastest there",
        "bita calibrate tree engines/smollm2-135m-instruct-int4",
    )
    parser.add_argument(
        "stage",
        choices=STAGES,
        help="acceptance: which drafts are right; latency: of steps of 1 to 128 rows; tree: both, "
        "where they are missing, and the tree chosen by them",
    )
    parser.add_argument("engine", type=Path)
    _add_effort(parser)
    add_threads(parser)
    parser.add_argument("--anew", action="store_true", help="measure again what is there already")
    parser.add_argument(
        "--what-if",
        metavar="DEVICE",
        help="JSON of another device's latency, or a modelled one: the GPUs orin-nano, agx-orin, "
        "rtx-4090, h100, or the CPUs orin-nano-cpu, agx-orin-cpu, pi-5: say what would be chosen "
        "there; the engine keeps its tree",
    )
    parser.add_argument("--mode", choices=MODES, help="of --what-if; default: the engine's own")
    parser.set_defaults(run=run)


def _add_effort(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=Path, help="JSONL file; default: a set of our own")
    for name, default, text in (
        ("--limit", USUAL.num_prompts, "prompts read; a third is for timing trees"),
        ("--max-new-tokens", USUAL.max_new_tokens, "of each answer"),
        ("--repeats", USUAL.repeats, "turns in which each size of step is timed"),
        ("--max-rows", USUAL.max_rows, "of the steps that are timed"),
    ):
        parser.add_argument(
            name, type=positive, default=default, help=f"{text}; default: {default}"
        )


def run(args: argparse.Namespace) -> int:
    from bita.engine import open_engine, revising
    from bita.errors import EngineError

    if args.mode and not args.what_if:
        raise EngineError("--mode goes with --what-if; an engine keeps the mode it was built with")
    if args.what_if:
        return _what_if(args, open_engine(args.engine))
    with revising(args.engine) as engine:
        return _measure(args, engine)


@contextmanager
def _calibrator(args: argparse.Namespace, engine: Any) -> Iterator[Any]:
    from bita.calibration.stages import Calibrator
    from bita.cli.shared.progress import progress_bars

    effort = Effort(args.limit, args.max_new_tokens, args.repeats, args.max_rows)
    with progress_bars() as show:
        yield Calibrator(engine, args.threads, show, args.prompts, effort)


def _what_if(args: argparse.Namespace, engine: Any) -> int:
    """Nothing is written, unless acceptance has to be measured first."""
    elsewhere = _latency_of(engine, args.what_if)
    with _calibrator(args, engine) as calibrator:
        choice = calibrator.forecast(calibrator.acceptance(args.anew), elsewhere, args.mode)
    _print_kept(calibrator)
    print(f"{args.what_if}: {elsewhere.device.get('processor', elsewhere.device)}")
    _print_choice(choice)
    return 0


def _measure(args: argparse.Namespace, engine: Any) -> int:
    with _calibrator(args, engine) as calibrator:
        if args.stage != "latency":
            acceptance = calibrator.acceptance(args.anew)
        if args.stage != "acceptance":
            latency = calibrator.latency(args.anew)
        if args.stage == "latency" and "latency" not in calibrator.kept:
            calibrator.memory()
        if args.stage == "tree":
            choice = calibrator.tree(acceptance, latency)
    _print_kept(calibrator)
    if args.stage == "acceptance":
        _print_acceptance(acceptance)
    elif args.stage == "latency":
        _print_latency(latency)
    else:
        _print_choice(choice)
    return 0


def _print_kept(calibrator: Any) -> None:
    for topic in calibrator.kept:
        print(f"{topic}: as it was measured before; --anew measures again")


def _latency_of(engine: Any, device: str) -> Any:
    """Of a modelled device, or of a file. Raises EngineError."""
    from bita.calibration.devices import MODELLED, modelled_latency
    from bita.calibration.latency import Latency
    from bita.errors import EngineError
    from bita.json_values import read_json_object

    if device in MODELLED:
        return modelled_latency(device, engine)
    fix = f"give a JSON file with a latency, or one of {', '.join(MODELLED)}"
    try:
        data: Any = read_json_object(Path(device), EngineError, fix)
    except EngineError as error:
        raise EngineError(f"cannot read a latency from {device}: {error}") from error
    return Latency.from_json(data.get("latency", data), device)  # or a whole calibration.json


def _print_acceptance(acceptance: Any) -> None:
    rows = [
        (row["mask"], row["count"], *(f"{sum(row['shares'][:rank]):.3f}" for rank in (1, 5, 10)))
        for row in acceptance.table()
    ]
    _print_table(("mask", "steps", "rank 1", "ranks to 5", "to 10"), rows)
    for name, num_drafted in (("without masks", 0), ("with all masks", len(rows))):
        guesses = [position.guess(num_drafted) for position in acceptance.positions()]
        known = [guess for guess in guesses if guess.level]
        right = sum(guess.right > 0 for guess in known) / max(len(known), 1)
        share = len(known) / max(len(guesses), 1)
        print(f"guesses {name}: in {100 * share:.0f} % of steps, {right:.3f} of them right")


def _print_latency(latency: Any) -> None:
    header = ("rows", *(f"ms at {length}" for length in latency.cache_lengths))
    rows = [
        (count, *(f"{median[i]:.2f} ± {spread[i] / 2:.2f}" for median, spread in _curves(latency)))
        for i, count in enumerate(latency.rows)
    ]
    _print_table(header, rows)
    print(f"monotone fit: {100 * latency.residual:.1f} % off (root mean square)")


def _curves(latency: Any) -> list[tuple[Sequence[float], Sequence[float]]]:
    return list(zip(latency.median, latency.spread, strict=True))


def _print_choice(choice: Any) -> None:
    from bita.cli.shared.trees import states_of

    shown = [choice.chosen, choice.ar, *choice.others[:MAX_SHOWN]]
    rows = [
        (
            ("* " if candidate is choice.chosen else "  ") + name,
            f"{candidate.mean_rows:.3g}",
            f"{candidate.expected_tokens:.3f}",
            _or_dash(candidate.measured_tokens, ".3f"),
            f"{candidate.expected_speed:.1f}",
            _or_dash(candidate.measured_speed, ".1f"),
        )
        for candidate, name in [
            *((candidate, str(candidate.tree)) for candidate in dict.fromkeys(shown)),
            (choice.triangle, "BiTA's triangle"),
        ]
    ]
    header = ("tree", "rows", "tokens per step", "measured", "tokens/s", "measured")
    _print_table(header, rows)
    print(f"chosen: {choice}")
    for where, tree in states_of(choice.chosen.tree):
        print(f"  {where}: {tree}")


def _or_dash(value: float, form: str) -> str:
    return format(value, form) if value else "-"


def _print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header)
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)
