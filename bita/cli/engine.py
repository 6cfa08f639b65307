"""`bita engine`: build an engine directory."""

import argparse
import re
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from bita.cli.shared.flags import TREE_HELP, add_command, positive
from bita.cli.shared.plans import add_plan_arguments, default_dialect, plan_options


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "engine",
        "build an engine directory from a model and an adapter",
        "bita engine smollm2-135m-instruct --precision int4 --out engines/smollm2",
    )
    parser.add_argument(
        "model",
        help="known name, Hugging Face directory, .gguf file, or hub id org/name[@revision]",
    )
    parser.add_argument("--adapter", type=Path, help="adapter file; default: an untuned one")
    parser.add_argument("--precision", default="int4", help="fp32, fp16, int8, int4 (default), fp8")
    parser.add_argument(
        "--backend",
        default="ort-cpu",
        help="ort-cpu (default); ort-cuda, tensorrt, tensorrt-rtx: for NVIDIA GPUs",
    )
    parser.add_argument(
        "--dialect",
        help="of the graph: ort, for CPUs; standard or plain, for TensorRT; cuda; default: the "
        "backend's",
    )
    add_plan_arguments(parser)
    parser.add_argument(
        "--quantizer",
        default="gptq",
        help="gptq (default): int4 rounded, int8 smoothed for what the model reads; rtn: to the "
        "nearest",
    )
    parser.add_argument(
        "--calibration-prompts",
        type=Path,
        help="JSONL file; the answers are calibrated on and judged by; default: a set of our own",
    )
    parser.add_argument(
        "--uncalibrated",
        action="store_true",
        help="round to the nearest and measure nothing: seconds, no float32 copy; tree: a chain",
    )
    parser.add_argument("--out", type=Path, help="default: engines/MODEL-PRECISION")
    parser.add_argument(
        "--capacity", type=positive, help="cache slots; default: 2048 or the model's limit"
    )
    parser.add_argument("--tree", help=f"{TREE_HELP}; default: the fastest on this device")
    parser.add_argument(
        "--mode", default="exact", help="exact (default): bit-identical to AR; tree: all branches"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bita.adapter import Adapter
    from bita.calibration.calibrated_build import CalibrationOptions
    from bita.cli.shared.trees import read_tree
    from bita.export.build import BuildOptions
    from bita.export.sources import open_checkpoint

    began = time.perf_counter()
    plan = plan_options(args)
    calibration = CalibrationOptions(args.quantizer, args.calibration_prompts)
    checkpoint = open_checkpoint(args.model)
    adapter = Adapter.load(args.adapter) if args.adapter else None
    tree = read_tree(args.tree, adapter.num_masks if adapter else 3) if args.tree else None
    options = BuildOptions(
        precision=args.precision,
        mode=args.mode,
        capacity=args.capacity,
        tree=tree,
        backend="ort-cpu" if plan else args.backend,
        dialect=args.dialect or default_dialect(args.backend, plan),
    )
    out = args.out or Path("engines") / default_name(args.model, args.precision, args.backend)
    build = _export if args.uncalibrated else partial(_calibrated, calibration=calibration)
    report = build(checkpoint, adapter, out, options, plan)
    num_bytes = sum(path.stat().st_size for path in out.iterdir())
    seconds = time.perf_counter() - began
    print(f"{out}: {args.precision}, {num_bytes / 1e6:.0f} MB, built in {seconds:.1f} s{report}")
    return 0


def default_name(model: str, precision: str, backend: str) -> str:
    """Of an engine directory."""
    stem = Path(model).stem if model.endswith(".gguf") else Path(model).name
    slug = re.sub(r"[^a-z0-9.]+", "-", stem.lower()).strip("-") or "model"
    return "-".join([slug, precision] + ([backend] if backend != "ort-cpu" else []))


def _calibrated(
    checkpoint: Any, adapter: Any, out: Path, options: Any, plan: Any, calibration: Any
) -> str:
    from bita.calibration.calibrated_build import build_calibrated
    from bita.cli.shared.progress import progress_bars
    from bita.dialect_spec import DIALECTS

    with progress_bars() as show:
        built = build_calibrated(checkpoint, adapter, out, options, calibration, show, plan)
    report = f"\n{built.quality}"
    if built.choice:
        report += f"\ndecodes with: {built.choice}"
    elif not options.tree and DIALECTS[options.dialect].runs_where_built:
        report += "\ndecodes with: AR; the cache is too small to measure trees in"
    return report


def _export(checkpoint: Any, adapter: Any, out: Path, options: Any, plan: Any) -> str:
    """Without a measurement. The graph is written beside `out` if it gets a plan yet."""
    from bita.cli.shared.progress import progress_bar, progress_bars
    from bita.engine import check_replaceable, move_engine, open_engine
    from bita.export.build import build_engine
    from bita.export.tensorrt.compile_engine import compile_engine

    check_replaceable(out)
    target = out.with_name(f".{out.name}.graph") if plan else out
    with progress_bar("exporting", in_bytes=True) as bar:
        build_engine(checkpoint, adapter, target, options, bar.start, bar.add, plan=plan)
    if plan:
        try:
            with progress_bars() as show:
                move_engine(compile_engine(open_engine(target), plan, show), out)
        finally:
            shutil.rmtree(target, ignore_errors=True)
    return ""
