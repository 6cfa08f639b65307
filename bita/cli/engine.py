"""`bita engine`: build an engine directory."""

import argparse
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bita.cli.shared.flags import TREE_HELP, add_command, positive
from bita.cli.shared.plans import add_plan_arguments, default_dialect, read_compile_options
from bita.dialect_spec import NATIVE
from bita.errors import AdapterError, EngineError

if TYPE_CHECKING:
    from bita.calibration.calibrated_build import CalibrationOptions
    from bita.engine import Engine
    from bita.export.adapter_choice import AdapterChoice
    from bita.export.build import BuildOptions, CheckedBuild
    from bita.export.tensorrt.compile_engine import CompileOptions


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
    parser.add_argument(
        "--adapter",
        metavar="FILE",
        help="adapter file, or none for an untuned engine; default: adapters/NAME.safetensors, "
        "else the one that ships with bita-edge, else none",
    )
    parser.add_argument("--precision", default="int4", help="fp32, fp16, int8, int4 (default), fp8")
    parser.add_argument(
        "--backend",
        default="ort-cpu",
        help="ort-cpu (default); ort-cuda, tensorrt, tensorrt-rtx: for NVIDIA GPUs",
    )
    parser.add_argument(
        "--dialect",
        help="of the graph's operators: native or ort, for CPUs; standard or plain, for TensorRT; "
        "cuda; default: the backend's, native for int4 and int8 on a CPU",
    )
    parser.add_argument(
        "--cache",
        help="type of keys and values in the native dialect: float16 (default) or float32, which "
        "takes twice the memory; other dialects have one type each",
    )
    add_plan_arguments(parser)
    _add_quantization(parser)
    parser.add_argument("--out", type=Path, help="default: engines/NAME-PRECISION")
    parser.add_argument(
        "--if-needed",
        action="store_true",
        help="keep the engine at OUT if it is whole and was built from the same model, adapter and "
        "options by the same bita-edge",
    )
    parser.add_argument(
        "--capacity", type=positive, help="cache slots; default: 2048 or the model's limit"
    )
    parser.add_argument("--tree", help=f"{TREE_HELP}; default: the fastest on this device")
    parser.add_argument(
        "--mode", default="exact", help="exact (default): bit-identical to AR; tree: all branches"
    )
    parser.set_defaults(run=run)


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    """Flags for how weights are rounded, and on what."""
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


@dataclass(frozen=True)
class _Request:
    """What is asked for, before the model is opened."""

    model: str
    choice: "AdapterChoice"
    options: "BuildOptions"
    compile_options: "CompileOptions | None"
    calibration: "CalibrationOptions | None"  # None: nothing is measured
    out: Path
    inputs: str  # digest of all that the engine depends on


def run(args: argparse.Namespace) -> int:
    from bita.engine import open_engine
    from bita.engine_access import writing

    began = time.perf_counter()
    request = _read(args)
    if args.if_needed and _is_built(request):
        return _keep(request)
    build = _check(request)
    with writing(request.out):
        if args.if_needed and _is_built(request):  # by the writer that we waited for
            return _keep(request)
        report = _build(build, request)
        engine = open_engine(request.out)
    size = f"{args.precision}, {engine.num_bytes / 1e6:.0f} MB"
    print(f"{request.out}: {size}, built in {time.perf_counter() - began:.1f} s{report}")
    print(_adapter_of(request, engine))
    if fault := _text_fault(request.out):
        print(f"C and C++: programs give token ids to this engine: {fault}")
    return 0


def _text_fault(engine: Path) -> str:
    """Why libbita cannot hold an engine's tokenizer; "" if it can, or is not here to say."""
    from bita.native import LibbitaMissingError, text_fault

    try:
        return text_fault(engine)
    except LibbitaMissingError:
        return ""


def _read(args: argparse.Namespace) -> _Request:
    """Read what the flags name; the model is not opened. Raises BitaError."""
    from bita.calibration.calibrated_build import CalibrationOptions
    from bita.cli.shared.trees import read_tree
    from bita.export.adapter_choice import choose_adapter
    from bita.export.build import BuildOptions
    from bita.export.model_name import engine_path
    from bita.runtime.native.library import loaded_operators

    compile_options = read_compile_options(args)
    calibration = CalibrationOptions(args.quantizer, args.calibration_prompts)
    choice = choose_adapter(args.adapter, args.model)
    num_masks = choice.adapter.num_masks if choice.adapter else 3
    options = BuildOptions(
        precision=args.precision,
        mode=args.mode,
        capacity=args.capacity,
        tree=read_tree(args.tree, num_masks) if args.tree else None,
        backend="ort-cpu" if compile_options else args.backend,
        dialect=args.dialect or default_dialect(args.backend, args.precision, compile_options),
        cache_type=args.cache or BuildOptions.cache_type,
    )
    if args.cache and options.dialect != NATIVE.name:
        raise EngineError(
            f"--cache is for dialect native, not {options.dialect}, whose caches have one type"
        )
    if options.dialect == NATIVE.name and not args.uncalibrated:
        loaded_operators()  # before minutes of work
    request = _Request(
        model=args.model,
        choice=choice,
        options=options,
        compile_options=compile_options,
        calibration=None if args.uncalibrated else calibration,
        out=args.out or engine_path(args.model, args.precision, args.backend),
        inputs="",
    )
    return replace(request, inputs=_digest(request))


def _digest(request: _Request) -> str:
    from bita.calibration.sample_texts import prompt_files
    from bita.data.generate_data import FilePrompts
    from bita.export.build_inputs import digest_inputs

    plan, calibration = request.compile_options, request.calibration
    prompts = prompt_files(calibration.prompts) if calibration else ()
    settings = {
        "options": asdict(request.options),
        "plan": [plan.backend, plan.targets, plan.rows] if plan else None,
        "quantizer": calibration.quantizer if calibration else None,
        "prompts": [dict(FilePrompts(path).options) for path in prompts],
    }
    return digest_inputs(request.model, request.choice.adapter, settings)


def _is_built(request: _Request) -> bool:
    """Whether the engine is there, whole, and built from the same."""
    from bita.engine import MANIFEST_FILE, open_engine

    if not (request.out / MANIFEST_FILE).is_file():
        return False
    try:
        if open_engine(request.out).manifest.inputs != request.inputs:
            return False
        open_engine(request.out, check_hashes=True)
    except EngineError as error:
        print(f"bita: building again: {' '.join(str(error).split())}", file=sys.stderr)
        return False
    return True


def _keep(request: _Request) -> int:
    from bita.engine import open_engine

    print(f"{request.out}: up to date")
    print(_adapter_of(request, open_engine(request.out)))
    return 0


def _adapter_of(request: _Request, engine: "Engine") -> str:
    """What the user should know of the engine's adapter."""
    if not engine.manifest.is_tuned:
        return (
            "untuned: the text is right, but few drafts are; `bita tune` makes an adapter for the "
            "model, --adapter FILE takes one"
        )
    return f"adapter: {request.choice.source}"


def _check(request: _Request) -> "CheckedBuild":
    from bita.export.build import check_build
    from bita.export.sources import open_checkpoint

    checkpoint = open_checkpoint(request.model)
    choice, options = request.choice, request.options
    try:
        build = check_build(
            checkpoint, choice.adapter, request.out, options, request.compile_options
        )
    except AdapterError as error:
        raise choice.explained(error) from error
    return replace(build, inputs=request.inputs)


def _build(build: "CheckedBuild", request: _Request) -> str:
    """Build the engine, and report what was measured."""
    from bita.cli.shared.progress import progress_bars
    from bita.export.finished_build import build_uncalibrated

    if request.calibration is not None:
        return _kept_blocks(build) + _calibrated(build, request.calibration)
    with progress_bars() as show:
        build_uncalibrated(build, show)
    return _kept_blocks(build)


def _kept_blocks(build: "CheckedBuild") -> str:
    """A line on weights that stay as they are in the model's file; "" if they are rounded."""
    from bita.export.dialects.native_linear import keeps_blocks, kept_text

    options, checkpoint = build.options, build.checkpoint
    if options.dialect != NATIVE.name or not keeps_blocks(checkpoint, options.precision):
        return ""
    return f"\nweights: {kept_text(checkpoint)}"


def _calibrated(build: "CheckedBuild", calibration: "CalibrationOptions") -> str:
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
