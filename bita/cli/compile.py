"""`bita compile`: compile the graph of an engine into a plan for GPUs."""

import argparse
import time
from pathlib import Path
from typing import Any

from bita.cli.shared.flags import add_command
from bita.cli.shared.plans import add_plan_arguments, read_compile_options


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "compile",
        "compile an engine's graph for GPUs, for the first time or again",
        "bita compile engines/smollm2-135m-instruct-int4-tensorrt",
        stdout="a line with the plan, its size and the time; progress goes to standard error",
    )
    parser.add_argument("engine", type=Path, help="engine directory")
    parser.add_argument(
        "--backend", help="tensorrt or tensorrt-rtx; default: that of its present plan"
    )
    add_plan_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bita.cli.shared.progress import progress_bars
    from bita.engine import PLAN_FILE, revising
    from bita.errors import EngineError
    from bita.export.tensorrt.compile_engine import compile_engine
    from bita.plan import LIBRARIES, PlanInfo

    began = time.perf_counter()
    with revising(args.engine, unchecked=(PLAN_FILE,)) as engine:  # the plan is replaced
        args.backend = args.backend or engine.manifest.backend
        compile_options = read_compile_options(args)
        if compile_options is None:
            raise EngineError(
                f"engines of backend {args.backend} have no plan; give --backend "
                f"{' or '.join(LIBRARIES)}"
            )
        with progress_bars() as show:
            engine = compile_engine(engine, compile_options, show)
    info = PlanInfo.from_manifest(engine.manifest.plan)
    rows = ", ".join(map(str, info.decode_rows))
    print(
        f"{engine.path}: {info.name}, {', '.join(info.targets)}, steps of {rows} rows, "
        f"{engine.files[PLAN_FILE]['bytes'] / 1e6:.0f} MB, "
        f"compiled in {time.perf_counter() - began:.1f} s"
    )
    return 0
