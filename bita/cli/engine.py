"""`bita engine`: build an engine directory from a model and an adapter."""

import argparse
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bita.cli.shared.flags import TREE_HELP, add_command, positive
from bita.cli.shared.output import add_json, json_report
from bita.cli.shared.plans import add_plan_arguments, default_dialect, read_compile_options
from bita.dialect_spec import NATIVE
from bita.errors import AdapterError, EngineError

if TYPE_CHECKING:
    from bita.calibration.calibrated_build import CalibrationOptions
    from bita.calibration.choose_tree import Choice
    from bita.calibration.report import Quality
    from bita.engine import Engine
    from bita.export.adapter_choice import AdapterChoice
    from bita.export.build import BuildOptions, CheckedBuild
    from bita.export.tensorrt.compile_engine import CompileOptions
    from bita.progress import OnProgress


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "engine",
        "build an engine directory from a model and an adapter",
        "bita engine smollm2-135m-instruct --precision int4 --out engines/smollm2",
        stdout="what was built, its measured quality and its tree; progress goes to standard error",
    )
    parser.add_argument(
        "model",
        help="known name, Hugging Face directory, .gguf file, or hub id org/name[@revision]",
    )
    parser.add_argument(
        "--adapter",
        metavar="FILE",
        help="adapter file, or none for an untuned engine; default: adapters/NAME.safetensors, "
        "otherwise the one that ships with bita-edge, otherwise none",
    )
    _add_graph(parser)
    add_plan_arguments(parser)
    _add_quantization(parser)
    parser.add_argument(
        "--out", type=Path, help="engine directory; default: engines/NAME-PRECISION"
    )
    parser.add_argument(
        "--if-needed",
        action="store_true",
        help="keep the engine at OUT if it is complete and was built from the same model, adapter "
        "and options by the same bita-edge",
    )
    parser.add_argument(
        "--capacity", type=positive, help="cache slots; default: 2048, or the model's limit if less"
    )
    parser.add_argument(
        "--tree", help=f"{TREE_HELP}; default: the fastest on this device, which is measured"
    )
    parser.add_argument(
        "--mode",
        default="exact",
        help="exact (default): bit-identical to plain decoding; tree: "
        "accept all branches, equal up to rounding",
    )
    add_json(parser, "facts of the engine and what was measured")
    parser.set_defaults(run=run)


def _add_graph(parser: argparse.ArgumentParser) -> None:
    """Add the flags that decide the types and the operators of the graph."""
    parser.add_argument(
        "--precision",
        default="int4",
        help="type of the weights: fp32, fp16, int8, int4 (default), fp8",
    )
    parser.add_argument(
        "--backend",
        default="ort-cpu",
        help="ort-cpu (default), or for NVIDIA GPUs ort-cuda, tensorrt, tensorrt-rtx",
    )
    parser.add_argument(
        "--dialect",
        help="operators of the graph: native or ort for CPUs, standard or plain for TensorRT, "
        "cuda for ort-cuda; default: the one for the backend, native for int4 and int8 on a CPU",
    )
    parser.add_argument(
        "--cache",
        help="type of the KV cache in the native dialect: float16 (default) or float32, which "
        "takes twice the memory; other dialects have one type each",
    )


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    """Add the flags that decide how weights are rounded."""
    parser.add_argument(
        "--quantizer",
        default="gptq",
        help="gptq (default): fit the rounding to sample texts; rtn: round to the nearest",
    )
    parser.add_argument(
        "--calibration-prompts",
        type=Path,
        help="JSONL file; weights are rounded for the answers, and the error is measured on them; "
        "default: the set of bita-edge",
    )
    parser.add_argument(
        "--uncalibrated",
        action="store_true",
        help="round to the nearest and measure nothing: takes seconds and no float32 copy; the "
        "tree is a safe guess (on a CPU n-grams without masks, on a GPU a chain of masks), "
        "and `bita calibrate tree` finds the fastest",
    )


@dataclass(frozen=True)
class _Request:
    """A build as the flags describe it, before the model is opened."""

    model: str
    choice: "AdapterChoice"
    options: "BuildOptions"
    compile_options: "CompileOptions | None"
    calibration: "CalibrationOptions | None"  # None: nothing is measured
    out: Path
    inputs: str  # digest of everything that the engine depends on


@dataclass(frozen=True)
class _Measured:
    """What a build measured of its engine, and what there is to say of its weights."""

    quality: "Quality | None" = None  # None: an uncalibrated build
    choice: "Choice | None" = None  # None: no tree was measured
    weights: str = ""  # what is said of weights that stay as they are in the model's file
    needs_room: bool = False  # whether no tree was measured because the cache is too small


def run(args: argparse.Namespace) -> int:
    with json_report(args.json) as report:
        report |= _build_if_needed(args)
    return 0


def _build_if_needed(args: argparse.Namespace) -> dict[str, Any]:
    """Build the engine, or keep the one that is there, and return its facts."""
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
        measured = _build(build, request)
        engine = open_engine(request.out)
    seconds = time.perf_counter() - began
    size = f"{args.precision}, {engine.num_bytes / 1e6:.0f} MB"
    print(f"{request.out}: {size}, built in {seconds:.1f} s", *_lines(measured), sep="\n")
    print(_describe_adapter(request, engine))
    fault = _text_fault(request.out)
    if fault:
        print(f"C and C++: programs give token ids to this engine: {fault}")
    if request.calibration is None and not request.options.tree:
        print(f"bita: {_guessed_tree(engine)}", file=sys.stderr)
    return _facts(request, engine, measured, seconds)


def _lines(measured: _Measured) -> list[str]:
    """Return a line for each thing that a build measured."""
    lines = [f"weights: {measured.weights}"] if measured.weights else []
    if measured.quality:
        lines.append(str(measured.quality))
    if measured.choice:
        lines.append(f"decodes with: {measured.choice}")
    elif measured.needs_room:
        lines.append("decodes with: AR; the cache is too small to measure trees in")
    return lines


def _guessed_tree(engine: "Engine") -> str:
    """Say which tree an uncalibrated engine has, and how to find the fastest one."""
    from bita.runtime.loaded_engine import read_tree

    return (
        f"the tree of {engine.path} was not measured ({read_tree(engine)}); "
        f"`bita calibrate tree {engine.path}` finds the fastest on this device"
    )


def _facts(
    request: _Request, engine: "Engine", measured: _Measured | None, seconds: float
) -> dict[str, Any]:
    """Return the facts of the engine for JSON; `measured` is None if it was there before."""
    from bita.calibration.report import read_quality
    from bita.cli.shared.calibration_facts import choice_facts
    from bita.cli.shared.engine_facts import quality_facts, text_facts, tree_facts

    found = measured or _Measured(read_quality(engine))
    manifest = engine.manifest
    return {
        "engine": str(request.out),
        "built": measured is not None,
        "seconds": seconds,
        "model": manifest.model,
        "backend": manifest.backend,
        "precision": manifest.precision,
        "dialect": manifest.dialect,
        "mode": manifest.mode,
        "size_bytes": engine.num_bytes,
        "cache_slots": manifest.capacity,
        "tree": tree_facts(engine),
        "tuned": manifest.is_tuned,
        "adapter": str(request.choice.source) if manifest.is_tuned else None,
        "weights": found.weights or None,
        "quality": quality_facts(found.quality) if found.quality else None,
        "tree_choice": choice_facts(found.choice) if found.choice else None,
        "text": text_facts(engine),
    }


def _text_fault(engine: Path) -> str:
    """Return why libbita cannot load an engine's tokenizer; "" if it can or is not installed."""
    from bita.native import LibbitaMissingError, text_fault

    try:
        return text_fault(engine)
    except LibbitaMissingError:
        return ""


def _read(args: argparse.Namespace) -> _Request:
    """Read what the flags name, without opening the model. Raises BitaError."""
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
        loaded_operators()  # fails here rather than after minutes of work
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
    from bita.export.build import default_tree
    from bita.export.build_inputs import digest_inputs

    plan, calibration = request.compile_options, request.calibration
    is_guessed = calibration is None and request.options.tree is None
    prompts = prompt_files(calibration.prompts) if calibration else ()
    settings = {
        "options": asdict(request.options),
        "plan": [plan.backend, plan.targets, plan.rows] if plan else None,
        "quantizer": calibration.quantizer if calibration else None,
        "prompts": [dict(FilePrompts(path).options) for path in prompts],
        "tree": str(default_tree(request.options, plan, 0)) if is_guessed else None,
    }
    return digest_inputs(request.model, request.choice.adapter, settings)


def _is_built(request: _Request) -> bool:
    """Whether the engine exists, is complete, and was built from the same inputs."""
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


def _keep(request: _Request) -> dict[str, Any]:
    from bita.engine import open_engine

    engine = open_engine(request.out)
    print(f"{request.out}: up to date")
    print(_describe_adapter(request, engine))
    return _facts(request, engine, None, 0.0)


def _describe_adapter(request: _Request, engine: "Engine") -> str:
    """Say where the engine's adapter is from, or how to get one."""
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


def _build(build: "CheckedBuild", request: _Request) -> _Measured:
    """Build the engine, and measure it if that is asked for."""
    from bita.cli.shared.progress import progress_bars
    from bita.export.finished_build import build_uncalibrated

    weights = _kept_blocks(build)
    with progress_bars() as show:
        if request.calibration is None:
            build_uncalibrated(build, show)
            return _Measured(weights=weights)
        return _calibrate(build, request.calibration, weights, show)


def _kept_blocks(build: "CheckedBuild") -> str:
    """Describe weights that stay as they are in the model's file; "" if they are rounded."""
    from bita.export.dialects.native_linear import keeps_blocks, kept_text

    options, checkpoint = build.options, build.checkpoint
    if options.dialect != NATIVE.name or not keeps_blocks(checkpoint, options.precision):
        return ""
    return kept_text(checkpoint)


def _calibrate(
    build: "CheckedBuild", calibration: "CalibrationOptions", weights: str, show: "OnProgress"
) -> _Measured:
    from bita.calibration.calibrated_build import build_calibrated
    from bita.dialect_spec import DIALECTS

    built = build_calibrated(build, calibration, show)
    wants_tree = not build.options.tree and DIALECTS[build.options.dialect].runs_where_built
    return _Measured(built.quality, built.choice, weights, wants_tree and not built.choice)
