"""`bita engine`: build an engine directory."""

import argparse
import re
import time
from pathlib import Path
from typing import Any

from bita.commands import TREE_HELP, add_command, positive


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
    parser.add_argument("--precision", default="int4", help="fp32 or int4 (default)")
    parser.add_argument("--out", type=Path, help="default: engines/MODEL-PRECISION")
    parser.add_argument(
        "--capacity", type=positive, help="cache slots; default: 2048 or the model's limit"
    )
    parser.add_argument("--tree", help=f"{TREE_HELP}; default: chain")
    parser.add_argument(
        "--mode", default="exact", help="exact (default): bit-identical to AR; tree: all branches"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bita.adapter import Adapter
    from bita.commands.progress import progress_bar
    from bita.commands.trees import read_tree
    from bita.export.build import BuildOptions, build_engine
    from bita.export.sources import open_checkpoint

    began = time.perf_counter()
    checkpoint = open_checkpoint(args.model)
    adapter = Adapter.load(args.adapter) if args.adapter else None
    tree = read_tree(args.tree, adapter.num_masks if adapter else 3) if args.tree else None
    options = BuildOptions(
        precision=args.precision, mode=args.mode, capacity=args.capacity, tree=tree
    )
    out = args.out or Path("engines") / f"{_slug(args.model)}-{args.precision}"
    with progress_bar("exporting", in_bytes=True) as bar:
        build_engine(checkpoint, adapter, out, options, bar.start, bar.add)
    num_bytes = sum(path.stat().st_size for path in out.iterdir())
    seconds = time.perf_counter() - began
    print(f"{out}: {args.precision}, {num_bytes / 1e6:.0f} MB, built in {seconds:.1f} s")
    return 0


def _slug(model: str) -> str:
    stem = Path(model).stem if model.endswith(".gguf") else Path(model).name
    return re.sub(r"[^a-z0-9.]+", "-", stem.lower()).strip("-") or "model"
