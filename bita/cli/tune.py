"""`bita tune`: from a model to an adapter that is tuned to it."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bita.cli.shared.flags import add_command, not_negative, positive
from bita.tuning.settings import (
    ANCHORS,
    LOSSES,
    MASK_STARTS,
    PAIRS,
    PREFIX_STARTS,
    WEIGHTS,
    TuneSettings,
)

if TYPE_CHECKING:
    from bita.tuning.trainer import StepReport
    from bita.tuning.tune import TuneResult, Watcher

CHOICES = {
    "loss": LOSSES,
    "weights": WEIGHTS,
    "pairs": PAIRS,
    "anchors": ANCHORS,
    "mask_start": MASK_STARTS,
    "prefix_start": PREFIX_STARTS,
}


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "tune",
        "tune an adapter to a model, on text that the model writes itself or on your prompts",
        "bita tune smollm2-135m-instruct --prompts mine.jsonl --max-minutes 60",
    )
    parser.add_argument("model", help="as for `bita engine`")
    parser.add_argument("--out", type=Path, help="default: adapters/MODEL.safetensors")
    parser.add_argument(
        "--work", type=Path, help="folder of data and checkpoints; default: tuning/MODEL"
    )
    data = parser.add_argument_group("data")
    data.add_argument("--prompts", type=Path, help="JSONL file; default: the model writes its own")
    data.add_argument(
        "--openings",
        help="file of words that such prompts begin with, one in each line; default: 195 of ours, "
        "in English; none: prompts begin as the model likes",
    )
    data.add_argument(
        "--data",
        action="append",
        type=Path,
        default=[],
        help="conversations of an earlier run, used as they are; may be given several times",
    )
    data.add_argument("--num-conversations", type=positive, default=500)
    data.add_argument("--max-new-tokens", type=positive, default=256, help="of each response")
    data.add_argument(
        "--generator",
        default="transformers",
        help="who writes prompts and responses: engine, one that is built for it, fastest on a "
        "CPU; transformers (default); an engine directory; or, for responses, the URL of an "
        "OpenAI-compatible endpoint (key: OPENAI_API_KEY)",
    )
    data.add_argument("--served-name", help="the model's name at the endpoint; default: MODEL")
    data.add_argument("--held-out", type=positive, default=40, help="conversations to evaluate on")
    base = parser.add_argument_group("base model")
    parser.add_argument("--start-from", type=Path, help="a tuned adapter to go on from")
    base.add_argument("--device", help="default: cuda where there is one, else cpu")
    base.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    base.add_argument(
        "--load-in-4bit", action="store_true", help="the decoder's weights, by bitsandbytes"
    )
    parser.add_argument(
        "--evaluate-every", type=not_negative, default=0, help="steps; 0: at the end"
    )
    training = parser.add_argument_group("training")
    for field in fields(TuneSettings):
        _add_setting(training, field)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bita.adapter import Adapter
    from bita.export.model_name import adapter_path, model_name
    from bita.export.sources import open_checkpoint
    from bita.tuning.processes import join_processes
    from bita.tuning.tune import DataOptions, RunOptions, tune

    settings = TuneSettings(
        **{field.name: getattr(args, field.name) for field in fields(TuneSettings)}
    )
    data = DataOptions(
        data=tuple(args.data),
        prompts=args.prompts,
        openings=args.openings,
        prompt_seed=args.seed,
        num_conversations=args.num_conversations,
        max_new_tokens=args.max_new_tokens,
        generator=args.generator,
        served_name=args.served_name or args.model,
        api_key=os.environ.get("OPENAI_API_KEY"),
        num_held_out=args.held_out,
    )
    checkpoint = open_checkpoint(args.model)
    with join_processes(args.device) as processes, _bars(processes.is_main) as watcher:
        options = RunOptions(
            directory=args.work or Path("tuning") / model_name(args.model),
            out=args.out or adapter_path(args.model),
            start=Adapter.load(args.start_from) if args.start_from else None,
            dtype=args.dtype,
            load_in_4bit=args.load_in_4bit,
            evaluate_every=args.evaluate_every,
        )
        result = tune(checkpoint, data, settings, options, processes, watcher)
    if processes.is_main:
        _report(result)
    return 0


def _add_setting(group: Any, field: "Field[Any]") -> None:
    """A flag for one of the settings; their meaning stands beside the fields of TuneSettings."""
    flag = f"--{field.name.replace('_', '-')}"
    kind = type(field.default)
    group.add_argument(
        flag,
        type=kind,
        default=field.default,
        choices=CHOICES.get(field.name),
        help=f"default: {field.default}",
    )


@contextmanager
def _bars(shown: bool) -> "Iterator[Watcher]":
    """Bars for the stages of the data and for the training."""
    from bita.cli.shared.progress import progress_bars
    from bita.tuning.tune import Watcher

    if not shown:
        yield Watcher()
        return
    with progress_bars() as show:

        def on_step(report: "StepReport", progress: float) -> None:
            show(f"training, loss {report.loss:.3f}", round(1000 * progress), 1000)

        yield Watcher(on_data=show, on_step=on_step)


def _report(result: "TuneResult") -> None:
    print(f"{result.adapter}: on held-out text, before and after")
    before, after = result.before.report(), result.after.report()
    for name, value in after["tokens_per_step"].items():
        words = name.replace("_", " ")
        print(f"  {words}: {before['tokens_per_step'][name]:.2f} -> {value:.2f} tokens per step")
    for mask, (old, new) in enumerate(zip(before["accuracy"], after["accuracy"], strict=True)):
        shares = ", ".join(f"{share:.2f}" for share in new)
        print(f"  mask {mask}: right at rank 1, 5, 10: {shares} (rank 1 before: {old[0]:.2f})")
