"""`bita tune`: tune an adapter to a model."""

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

SETTINGS = {
    "num_masks": "mask tokens",
    "prefix_length": "virtual tokens before the text; 0: tune mask embeddings only",
    "mask_start": "first mask embeddings: mean of the table, or normal random numbers",
    "prefix_start": "first prefix: activations of a training text, or normal random numbers",
    "lora_rank": "rank of LoRA on mask rows; 0: no LoRA",
    "pair_rank": "rank of the pair scores; 0: no pair scores",
    "pairs": "learn pair scores with the masks (joint), or after them",
    "pair_rate": "first learning rate of joint pair scores",
    "pair_dropout": "share of rows that are trained without joint pair scores",
    "pair_texts": "maximum number of conversations for learning pair scores after the masks",
    "num_continuations": "size of the table of continuations; 0: no table",
    "loss": "kl: to the logits of the base; ce: to its best tokens; mix: half of each",
    "decay": "weight of mask k is this to the power of k",
    "weights": "further weight of a row: confidence in the drafts before it, whether they match, "
    "or decay alone",
    "anchors": "places of mask groups: random in the response, or consecutive",
    "num_anchors": "mask groups per conversation and step",
    "keep_far": "share of groups that keep mask k + 1, among those that keep mask k",
    "dropout": "dropout of the prefix, element by element",
    "batch_size": "conversations per step",
    "context_gb": "host memory per process for texts that were read; 0: read in batches",
    "max_tokens": "longest prompt with its response, in tokens; the rest is cut off",
    "mask_rate": "first learning rate of the mask embeddings",
    "prefix_rate": "first learning rate of the prefix",
    "lora_rate": "first learning rate of LoRA",
    "warmup_steps": "first steps, in which learning rates rise from 0",
    "clip": "largest norm of the gradient; 0: no clipping",
    "num_steps": "steps of the schedule; 0: learn pair scores only",
    "max_minutes": "length of the schedule in minutes instead of steps; 0: by steps",
    "seed": "seed of everything random",
}


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "tune",
        "tune an adapter to a model, on text that the model writes itself or on your prompts",
        "bita tune smollm2-135m-instruct --prompts mine.jsonl --max-minutes 60",
        stdout="the adapter's figures on held-out text, before and after; progress goes to "
        "standard error",
    )
    parser.add_argument("model", help="known name, Hugging Face directory, .gguf file or hub id")
    parser.add_argument(
        "--out", type=Path, help="adapter file; default: adapters/MODEL.safetensors"
    )
    parser.add_argument(
        "--work", type=Path, help="directory of data and checkpoints; default: tuning/MODEL"
    )
    _add_data(parser)
    base = parser.add_argument_group("base model")
    parser.add_argument("--start-from", type=Path, help="tuned adapter to continue from")
    base.add_argument(
        "--device", help="device of the base model; default: cuda if there is one, otherwise cpu"
    )
    base.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="type of the model's weights (default float32)",
    )
    base.add_argument(
        "--load-in-4bit",
        action="store_true",
        help="quantize the decoder's weights with bitsandbytes",
    )
    parser.add_argument(
        "--evaluate-every",
        type=not_negative,
        default=0,
        help="steps between evaluations; 0 (default): only at the end",
    )
    training = parser.add_argument_group("training")
    for field in fields(TuneSettings):
        _add_setting(training, field)
    parser.set_defaults(run=run)


def _add_data(parser: argparse.ArgumentParser) -> None:
    """Add the flags that decide which conversations are trained on."""
    data = parser.add_argument_group("data")
    data.add_argument("--prompts", type=Path, help="JSONL file; default: the model writes its own")
    data.add_argument(
        "--openings",
        help="file with the first words of such prompts, one per line; default: 195 English "
        "ones of bita-edge; none: the model chooses",
    )
    data.add_argument(
        "--data",
        action="append",
        type=Path,
        default=[],
        help="file with conversations of an earlier run, used as they are; repeatable",
    )
    data.add_argument(
        "--num-conversations",
        type=positive,
        default=500,
        help="conversations to write (default 500)",
    )
    data.add_argument(
        "--max-new-tokens",
        type=positive,
        default=256,
        help="length of each response (default 256)",
    )
    data.add_argument(
        "--generator",
        default="transformers",
        help="writer of prompts and responses: transformers (default); engine, one built for this, "
        "fastest on a CPU; an engine directory; or, for responses only, the URL of an "
        "OpenAI-compatible endpoint, whose key is in the variable OPENAI_API_KEY",
    )
    data.add_argument("--served-name", help="the model's name at the endpoint; default: MODEL")
    data.add_argument(
        "--held-out", type=positive, default=40, help="conversations for evaluation (default 40)"
    )


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
    """Add a flag for one of the settings of a run."""
    flag = f"--{field.name.replace('_', '-')}"
    kind = type(field.default)
    group.add_argument(
        flag,
        type=kind,
        default=field.default,
        choices=CHOICES.get(field.name),
        help=f"{SETTINGS[field.name]}; default: {field.default}",
    )


@contextmanager
def _bars(shown: bool) -> "Iterator[Watcher]":
    """Show the progress of data and training, if `shown`."""
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
