"""Feed mutated inputs to every parser and report all errors that are not the project's own.

    python tests/fuzz/run.py [TARGET ...] [--executions 100000] [--seconds S] [--seed 0]
    python tests/fuzz/run.py TARGET --repeat NUMBER    one execution alone, with its traceback

Prints one line for each target; the exit status is 1 if there was a fault. Target, seed and number
determine an input.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", RAYON_NUM_THREADS="1")
os.environ["RUST_BACKTRACE"] = "0"  # a panic's backtrace takes longer than the parsers
sys.path.append(str(Path(__file__).parents[1] / "support"))

from engine_targets import engine_targets
from model_targets import model_targets
from request_targets import request_targets
from running import Outcome, Target, fuzz, generator_of, select_targets

MAX_SHOWN = 3  # execution numbers listed for one fault


def main() -> int:
    targets = [*engine_targets(), *model_targets(), *request_targets()]
    args = _arguments([target.name for target in targets])
    chosen = [*select_targets(targets, args.targets)]
    if args.repeat is not None:
        with tempfile.TemporaryDirectory() as directory:
            return _repeat(chosen[0], Path(directory), args.seed, args.repeat)
    failed = False
    for target in chosen:
        with tempfile.TemporaryDirectory() as directory:
            seconds = args.seconds / len(chosen)
            outcome = fuzz(target, Path(directory), args.seed, args.executions, seconds)
        _report(target, outcome)
        failed |= bool(outcome.faults)
    return int(failed)


def _arguments(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {names}")
    parser.add_argument("--executions", type=int, default=100_000, help="executions of each target")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="time limit for all targets together"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=int, metavar="NUMBER")
    args = parser.parse_args()
    unknown = [name for name in args.targets if name not in names]
    if unknown:
        parser.error(f"unknown target: {', '.join(unknown)}; known: {', '.join(names)}")
    if args.repeat is not None and len(args.targets) != 1:
        parser.error("--repeat requires exactly one target")
    return args


def _repeat(target: Target, directory: Path, seed: int, number: int) -> int:
    try:
        target.prepare(directory)(generator_of(target.name, seed, number))
    except target.allowed as error:
        print(f"refused: {error}")
    return 0


def _report(target: Target, outcome: Outcome) -> None:
    print(
        f"{target.name}: {outcome.executions} executions, {outcome.taken} accepted, "
        f"{outcome.refused} refused, slowest {outcome.slowest:.2f} s, "
        f"grew by {outcome.grown_bytes / 1e6:.0f} MB, {len(outcome.faults)} faults",
        flush=True,
    )
    for what, numbers in outcome.faults.items():
        shown = ", ".join(map(str, numbers[:MAX_SHOWN]))
        print(f"  {len(numbers)} times (--repeat {shown}): {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
