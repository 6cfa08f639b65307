"""`bita engine`: build an engine directory."""

import argparse
import re
import time
from pathlib import Path
from typing import Any

from bita.cli.shared.flags import TREE_HELP, add_command, positive
from bita.cli.shared.plans import add_plan_arguments, default_dialect, read_compile_options


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
    from bita.calibration.calibrated_build import CalibrationOptions

    began = time.perf_counter()
    compile_options = read_compile_options(args)
    calibration = CalibrationOptions(args.quantizer, args.calibration_prompts)
    build = _check(args, compile_options)
    report = _uncalibrated(build) if args.uncalibrated else _calibrated(build, calibration)
    num_bytes = sum(path.stat().st_size for path in build.out.iterdir())
    seconds = time.perf_counter() - began
    size = f"{args.precision}, {num_bytes / 1e6:.0f} MB"
    print(f"{build.out}: {size}, built in {seconds:.1f} s{report}")
    return 0


def _check(args: argparse.Namespace, compile_options: Any) -> Any:
    from bita.adapter import Adapter
    from bita.cli.shared.trees import read_tree
    from bita.export.build import BuildOptions, check_build
    from bita.export.sources import open_checkpoint

    checkpoint = open_checkpoint(args.model)
    adapter = Adapter.load(args.adapter) if args.adapter else None
    tree = read_tree(args.tree, adapter.num_masks if adapter else 3) if args.tree else None
    options = BuildOptions(
        precision=args.precision,
        mode=args.mode,
        capacity=args.capacity,
        tree=tree,
        backend="ort-cpu" if compile_options else args.backend,
        dialect=args.dialect or default_dialect(args.backend, compile_options),
    )
    out = args.out or Path("engines") / default_name(args.model, args.precision, args.backend)
    return check_build(checkpoint, adapter, out, options, compile_options)


def default_name(model: str, precision: str, backend: str) -> str:
    """The name of an engine directory, where none was given."""
    stem = Path(model).stem if model.endswith(".gguf") else Path(model).name
    slug = re.sub(r"[^a-z0-9.]+", "-", stem.lower()).strip("-") or "model"
    return "-".join([slug, precision] + ([backend] if backend != "ort-cpu" else []))


def _calibrated(build: Any, calibration: Any) -> str:
    """Build and measure the engine, and report what was measured."""
    from bita.calibration.calibrated_build import build_calibrated
    from bita.cli.shared.progress import progress_bars
    from bita.dialect_spec import DIALECTS

    with progress_bars() as show:
        built = build_calibrated(build, calibration, show)
    report = f"\n{built.quality}"
    if built.choice:
        report += f"\ndecodes with: {built.choice}"
    elif not build.options.tree and DIALECTS[build.options.dialect].runs_where_built:
        report += "\ndecodes with: AR; the cache is too small to measure trees in"
    return report


def _uncalibrated(build: Any) -> str:
    """Build the engine without a measurement."""
    from bita.cli.shared.progress import progress_bars
    from bita.export.build import build_uncalibrated

    with progress_bars() as show:
        build_uncalibrated(build, show)
    return ""
