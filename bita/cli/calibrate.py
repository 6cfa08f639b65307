"""`bita calibrate`: measure an engine on this device and choose its tree from the figures."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bita.calibration.effort import Effort
from bita.cli.shared.calibration_facts import (
    RANKS,
    acceptance_facts,
    choice_facts,
    latency_facts,
)
from bita.cli.shared.flags import add_command, add_threads, positive
from bita.cli.shared.output import add_json, json_report, print_table
from bita.manifest import MODES

STAGES = ("acceptance", "latency", "tree")
MAX_SHOWN = 4  # trees in the table besides the chosen one and AR; --json has all
USUAL = Effort()


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "calibrate",
        "measure an engine on this device and choose the tree that decodes fastest there",
        "bita calibrate tree engines/smollm2-135m-instruct-int4",
        stdout="the table of the stage; progress and notes go to standard error",
    )
    parser.add_argument(
        "stage",
        choices=STAGES,
        help="acceptance: measure which drafts are right; latency: time steps of 1 to 128 rows; "
        "tree: measure both where they are missing, then choose the fastest tree",
    )
    parser.add_argument("engine", type=Path, help="engine directory")
    _add_effort(parser)
    add_threads(parser)
    parser.add_argument(
        "--remeasure", action="store_true", help="measure again what was measured before"
    )
    parser.add_argument(
        "--what-if",
        metavar="DEVICE",
        help="report which tree would be chosen on another device; the engine keeps its own. "
        "DEVICE: JSON file with its latency, or a modelled device: the GPUs orin-nano, agx-orin, "
        "rtx-4090, h100, the CPUs orin-nano-cpu, agx-orin-cpu, pi-5",
    )
    parser.add_argument(
        "--mode", choices=MODES, help="mode for --what-if; default: that of the engine"
    )
    add_json(parser, "all figures")
    parser.set_defaults(run=run)


def _add_effort(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=Path, help="JSONL file; default: the set of bita-edge")
    for name, default, text in (
        ("--limit", USUAL.num_prompts, "prompts that are read; trees are timed on a third"),
        ("--max-new-tokens", USUAL.max_new_tokens, "length of each answer"),
        ("--repeats", USUAL.repeats, "rounds in which each size of step is timed"),
        ("--max-rows", USUAL.max_rows, "largest step that is timed"),
    ):
        parser.add_argument(
            name, type=positive, default=default, help=f"{text}; default: {default}"
        )


def run(args: argparse.Namespace) -> int:
    from bita.engine import open_engine, revising
    from bita.errors import EngineError

    if args.mode and not args.what_if:
        raise EngineError("--mode goes with --what-if; an engine keeps the mode it was built with")
    with json_report(args.json) as report:
        if args.what_if:
            report |= _what_if(args, open_engine(args.engine))
        else:
            with revising(args.engine) as engine:
                report |= _measure(args, engine)
    return 0


@contextmanager
def _calibrator(args: argparse.Namespace, engine: Any) -> Iterator[Any]:
    from bita.calibration.stages import Calibrator
    from bita.cli.shared.progress import progress_bars

    effort = Effort(args.limit, args.max_new_tokens, args.repeats, args.max_rows)
    with progress_bars() as show:
        yield Calibrator(engine, args.threads, show, args.prompts, effort)


def _what_if(args: argparse.Namespace, engine: Any) -> dict[str, Any]:
    """Choose for another device. Writes nothing, unless acceptance must be measured first."""
    elsewhere = _latency_of(engine, args.what_if)
    with _calibrator(args, engine) as calibrator:
        choice = calibrator.forecast(calibrator.acceptance(args.remeasure), elsewhere, args.mode)
    _print_kept(calibrator)
    if not args.json:
        print(f"{args.what_if}: {elsewhere.device.get('processor', elsewhere.device)}")
        _print_choice(choice)
    return {**_head(args, calibrator), "what_if": elsewhere.device, **choice_facts(choice)}


def _measure(args: argparse.Namespace, engine: Any) -> dict[str, Any]:
    """Measure the stage that is asked for, print its table and return its figures."""
    with _calibrator(args, engine) as calibrator:
        if args.stage != "latency":
            acceptance = calibrator.acceptance(args.remeasure)
        if args.stage != "acceptance":
            latency = calibrator.latency(args.remeasure)
        if args.stage == "latency" and "latency" not in calibrator.kept:
            calibrator.memory()
        if args.stage == "tree":
            choice = calibrator.tree(acceptance, latency)
    _print_kept(calibrator)
    show: Callable[[], None]
    if args.stage == "acceptance":
        facts, show = acceptance_facts(acceptance), lambda: _print_acceptance(facts)
    elif args.stage == "latency":
        facts, show = latency_facts(latency), lambda: _print_latency(latency)
    else:
        facts, show = choice_facts(choice), lambda: _print_choice(choice)
    if not args.json:
        show()
    return {**_head(args, calibrator), **facts}


def _head(args: argparse.Namespace, calibrator: Any) -> dict[str, Any]:
    return {"stage": args.stage, "engine": str(args.engine), "kept": calibrator.kept}


def _print_kept(calibrator: Any) -> None:
    for topic in calibrator.kept:
        print(f"{topic}: as it was measured before; --remeasure measures again", file=sys.stderr)


def _latency_of(engine: Any, device: str) -> Any:
    """Return the latency of a modelled device, or read it from a file. Raises EngineError."""
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


def _print_acceptance(facts: dict[str, Any]) -> None:
    rows = [
        (row["mask"], row["steps"], *(f"{row[f'ranks_to_{rank}_share']:.3f}" for rank in RANKS))
        for row in facts["masks"]
    ]
    print_table(("mask", "steps", "rank 1", "ranks to 5", "to 10"), rows)
    for guess in facts["guesses"]:
        share, right = 100 * guess["share_of_steps"], guess["right_share"]
        print(f"guesses {guess['name']}: in {share:.0f} % of steps, {right:.3f} of them right")


def _print_latency(latency: Any) -> None:
    header = ("rows", *(f"ms at {length}" for length in latency.cache_lengths))
    curves = list(zip(latency.median, latency.spread, strict=True))
    rows = [
        (count, *(f"{median[i]:.2f} ± {spread[i] / 2:.2f}" for median, spread in curves))
        for i, count in enumerate(latency.rows)
    ]
    print_table(header, rows)
    print(f"monotone fit: {100 * latency.residual:.1f} % off (root mean square)")


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
    print_table(header, rows)
    print(f"chosen: {choice}")
    for where, tree in states_of(choice.chosen.tree):
        print(f"  {where}: {tree}")


def _or_dash(value: float, form: str) -> str:
    return format(value, form) if value else "-"
