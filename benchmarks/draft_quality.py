"""Count tokens per step of adapters by replay, since greedy text does not depend on drafts.

    python benchmarks/draft_quality.py smollm2-135m-instruct --prompts mt_bench.jsonl \
        --adapters untuned a.safetensors --trees-from tuning/smollm2-135m-instruct/data \
        --out results.json

The base model answers once. Its answers are stored in --cache, so that another adapter costs only
one forward of its mask rows. Steps are counted as in a session in mode "tree" (for the chain, in
mode "exact" too). The best trees of some sizes are chosen on the held-out part of the adapters'
tuning data (--trees-from). Without it they are chosen on the measured text itself, which flatters
them; the report says so.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_report import describe_machine

from bita.adapter import Adapter, untuned_adapter
from bita.cli.shared.progress import progress_bars
from bita.data.dataset import Dataset
from bita.data.generate_data import DataLimits, FilePrompts, generate_data
from bita.data.generators import TransformersGenerator
from bita.data.model_texts import ModelTexts
from bita.errors import BitaError, TuningError
from bita.export.checkpoint import Checkpoint
from bita.export.sources import open_checkpoint
from bita.torch.base_model import load_base_model
from bita.tree import Tree
from bita.tuning.evaluation import REPORTED_RANKS, DraftQuality, text_drafts
from bita.tuning.mask_model import AdapterParameters, MaskModel
from bita.tuning.processes import best_device
from bita.tuning.training_texts import TrainingText, cut_text, split_held_out, usable

UNTUNED = "untuned"
SAME_TEXT = "the measured texts themselves, which flatters the best trees"
NUM_RESAMPLES = 1000  # of the texts, for the interval of a mean


@dataclass(frozen=True)
class MeasuredTexts:
    """Texts to measure on."""

    texts: list[TrainingText]
    tree_texts: list[TrainingText] | None  # to choose trees on; None for the same texts
    source: dict[str, Any]  # description for the report


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Answer the prompts, or read existing answers, and replay them for each adapter."""
    machine = describe_machine(torch.get_num_threads())
    if args.device != "cpu":
        machine["accelerator"] = torch.cuda.get_device_name(args.device)
    checkpoint = open_checkpoint(args.model)
    adapters = [load_adapter(name, checkpoint, args) for name in args.adapters]
    model = MaskModel(load_base_model(checkpoint, args.dtype, args.device))
    measured = read_texts(checkpoint, model, args)
    results = []
    for name, adapter in zip(args.adapters, adapters, strict=True):
        results.append({**describe(name, adapter), **figures(name, model, adapter, measured)})
        print_result(results[-1])
    settings = {"model": args.model, "dtype": args.dtype, "threads": torch.get_num_threads()}
    return {**machine, **settings, **measured.source, "adapters": results}


def load_adapter(name: str, checkpoint: Checkpoint, args: argparse.Namespace) -> Adapter:
    """Load an adapter file that fits the model, or the untuned one. Raises AdapterError."""
    if name == UNTUNED:
        return untuned_adapter(checkpoint, args.num_masks, args.prefix_length)
    adapter = Adapter.load(name)
    adapter.check_fits(ModelTexts.of(checkpoint).identity)
    return adapter


def read_texts(checkpoint: Checkpoint, model: MaskModel, args: argparse.Namespace) -> MeasuredTexts:
    """Generate or continue the answers, and read the texts that trees are chosen on."""
    about = ModelTexts.of(checkpoint)
    prompts = FilePrompts(args.prompts)
    sha256 = str(prompts.options["prompts_sha256"])
    name = f"{Path(args.model).name}-{sha256[:8]}-{args.max_new_tokens}-{args.dtype}"
    limits = DataLimits(args.limit, args.max_new_tokens)
    generator = TransformersGenerator(model.base, about.eos_ids, args.batch_size)
    with progress_bars() as show:
        data = generate_data(about, prompts, generator, args.cache / name, limits, show)
    answers = list(islice(data, args.limit))
    texts = usable(
        [TrainingText((*c.prompt_ids, *c.response_ids), len(c.prompt_ids)) for c in answers]
    )
    tree_texts = held_out_texts(about, args) if args.trees_from else None
    source = {
        "prompts": args.prompts.name,
        "prompts_sha256": sha256,
        "num_texts": len(texts),
        "num_ended_by_eos": sum(c.finish == "eos" for c in answers),
        "max_new_tokens": args.max_new_tokens,
        "new_tokens": sum(len(c.response_ids) for c in answers),
        "trees_chosen_on": SAME_TEXT
        if tree_texts is None
        else f"{len(tree_texts)} held-out conversations of {args.trees_from.name}",
    }
    return MeasuredTexts(texts, tree_texts, source)


def held_out_texts(about: ModelTexts, args: argparse.Namespace) -> list[TrainingText]:
    """Return the texts that a tuning run on the data directory held out."""
    data = Dataset.load(args.trees_from, about.identity, about.tokenizer_sha256)
    texts = [cut_text(c.prompt_ids, c.response_ids, args.max_tokens) for c in data]
    _, held_out = split_held_out(usable(texts), args.held_out, args.seed)
    if not held_out:
        raise TuningError(
            f"{args.trees_from} has {len(texts)} conversations; at least 5 are needed to hold one "
            "out"
        )
    return held_out


def figures(
    name: str, model: MaskModel, adapter: Adapter, measured: MeasuredTexts
) -> dict[str, Any]:
    """Measure one adapter on the texts, with intervals and trees."""
    began = time.perf_counter()
    parameters = AdapterParameters(adapter).to(model.device)
    quality = ranks_of(name, model, parameters, measured.texts)
    chosen_on = quality
    if measured.tree_texts is not None:
        chosen_on = ranks_of(f"{name}, trees", model, parameters, measured.tree_texts)
    trees = chosen_on.trees()
    return {
        **quality.report(trees),
        "tokens_per_step_95": {n: interval(quality, tree) for n, tree in trees.items()},
        "rows": {n: tree.num_rows for n, tree in trees.items()},
        "trees": {n: [list(path) for path in tree.paths[1:]] for n, tree in trees.items()},
        "seconds": round(time.perf_counter() - began, 1),
    }


def ranks_of(
    name: str, model: MaskModel, parameters: AdapterParameters, texts: Sequence[TrainingText]
) -> DraftQuality:
    """Evaluate as `evaluate` does, with a progress bar."""
    tables, pairs = [], parameters.pair_tables(model)
    with progress_bars() as show:
        for number, text in enumerate(texts):
            show(name, number, len(texts))
            tables.append(text_drafts(model, parameters, text).true_ranks(pairs))
        show(name, len(texts), len(texts))
    return DraftQuality(tables)


def interval(quality: DraftQuality, tree: Tree) -> list[float]:
    """Return the 95 % interval of the tokens per step over resampled texts (bootstrap)."""
    tokens = np.array([len(table) for table in quality.tables])
    steps = np.array(quality.num_steps(tree))
    drawn = np.random.default_rng(0).integers(len(steps), size=(NUM_RESAMPLES, len(steps)))
    means = tokens[drawn].sum(1) / steps[drawn].sum(1)
    return [round(float(np.percentile(means, p)), 4) for p in (2.5, 97.5)]


def describe(name: str, adapter: Adapter) -> dict[str, Any]:
    """Describe an adapter for the report."""
    described = {
        "adapter": name if name == UNTUNED else Path(name).name,
        "num_masks": adapter.num_masks,
        "prefix_length": adapter.prefix_length,
        "tuned_on": adapter.tuned_on,
    }
    if name != UNTUNED:
        described["sha256"] = hashlib.sha256(Path(name).read_bytes()).hexdigest()
    return described


def print_result(result: Mapping[str, Any]) -> None:
    """Print two short tables for one adapter."""
    shape = f"{result['num_masks']} masks, prefix of {result['prefix_length']}"
    print(f"\n{result['adapter']}: {shape}, {result['num_groups']} groups")
    print("tree            rows  tokens per step  95 %")
    for name, value in result["tokens_per_step"].items():
        low, high = result["tokens_per_step_95"][name]
        rows = result["rows"][name]
        print(f"{name:15} {rows:4}  {value:15.3f}  {low:.2f}-{high:.2f}")
    ranks = ", ".join(map(str, REPORTED_RANKS))
    print(f"mask  right at rank {ranks}  if all before it are right")
    for mask, (alone, conditional) in enumerate(
        zip(result["accuracy"], result["conditional"], strict=True)
    ):
        shares = (" ".join(f"{share:.3f}" for share in side) for side in (alone, conditional))
        print(f"{mask:4}  {'  '.join(f'{side:22}' for side in shares)}".rstrip())


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="as for `bita engine`")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL or MT-Bench file")
    parser.add_argument("--limit", type=int, help="use only this many prompts, from the start")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--adapters", nargs="+", default=[UNTUNED], help=f"files, or {UNTUNED!r}")
    parser.add_argument("--num-masks", type=int, default=3, help=f"masks of {UNTUNED!r}")
    parser.add_argument("--prefix-length", type=int, default=0, help=f"prefix of {UNTUNED!r}")
    trees = parser.add_argument_group("the text that trees are chosen on")
    trees.add_argument("--trees-from", type=Path, help="data directory of the tuning run")
    trees.add_argument("--held-out", type=int, default=40, help="same as in the tuning run")
    trees.add_argument("--seed", type=int, default=0, help="same as in the tuning run")
    trees.add_argument("--max-tokens", type=int, default=1024, help="same as in the tuning run")
    parser.add_argument("--cache", type=Path, default=Path(".cache/draft_quality"))
    parser.add_argument("--batch-size", type=int, default=16, help="prompts answered at once")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, and write the JSON."""
    args = parse_arguments(argv)
    try:
        report = measure(args)
    except BitaError as error:
        print(f"draft_quality: {error}", file=sys.stderr)
        return 1
    print(f"\nbest trees chosen on {report['trees_chosen_on']}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
