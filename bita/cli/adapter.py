"""`bita adapter init`: write an untuned adapter."""

import argparse
from pathlib import Path
from typing import Any

from bita.cli.shared.flags import add_command, not_negative, positive


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "adapter",
        "write adapter files",
        "bita adapter init smollm2-135m-instruct --out adapter.safetensors",
        stdout="a line with the file and its size",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    init = add_command(
        actions,
        "init",
        "write an untuned adapter whose mask embeddings are the mean embedding",
        "bita adapter init smollm2-135m-instruct --out adapter.safetensors",
        stdout="a line with the file and its size",
    )
    init.add_argument("model", help="known name, directory, .gguf file or hub id")
    init.add_argument(
        "--out",
        type=Path,
        default=Path("adapter.safetensors"),
        help="file to write (default adapter.safetensors)",
    )
    init.add_argument("--masks", type=positive, default=3, help="mask tokens (default 3)")
    init.add_argument("--prefix", type=not_negative, default=0, help="prefix length (default 0)")
    init.add_argument("--lora-rank", type=not_negative, default=0, help="0 (default): no LoRA")
    init.add_argument(
        "--seed", type=not_negative, default=0, help="seed of the random prefix (default 0)"
    )
    init.set_defaults(run=run_init)


def run_init(args: argparse.Namespace) -> int:
    from bita.adapter import untuned_adapter
    from bita.export.sources import open_checkpoint

    checkpoint = open_checkpoint(args.model)
    adapter = untuned_adapter(checkpoint, args.masks, args.prefix, args.seed, args.lora_rank)
    adapter.save(args.out)
    size = args.out.stat().st_size / 1e3
    print(f"{args.out}: {args.masks} masks, prefix of {args.prefix}, {size:.0f} kB, untuned")
    return 0
