"""Measure the effect of tuning settings with short runs that change one setting each.

    python benchmarks/tuning_sweep.py MODEL --data DIR --out sweep.jsonl [--steps 60] [--only NAME]
    python benchmarks/tuning_sweep_page.py sweep.jsonl     # differences, with intervals

Each run writes a line to --out. Runs that are already there are skipped, so a sweep can be
interrupted. Several processes can share the work: each run is claimed by a file next to --out,
which must be removed if its process was killed. All runs have the same number of steps, see the
same conversations in the same order, and are judged on the same held-out ones. Settings of anchors
keep the number of mask rows. The base model's results for a text are shared by all runs.

There are two sets of runs: `three-masks` for the many rows of a GPU, and `few-rows` for a CPU,
where mainly the first mask pays.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bita.data.dataset import Dataset
from bita.data.model_texts import ModelTexts
from bita.export.sources import open_checkpoint
from bita.runtime.decoding.ngrams import NgramIndex
from bita.tensors import BoolArray
from bita.torch.base_model import load_base_model
from bita.tree import Tree
from bita.tuning.contexts import Contexts
from bita.tuning.evaluation import DraftQuality, evaluate
from bita.tuning.mask_model import MaskModel
from bita.tuning.pair_training import tune_pairs
from bita.tuning.run_files import RunFiles
from bita.tuning.settings import TuneSettings
from bita.tuning.start import starting_adapter, starting_parameters
from bita.tuning.trainer import Trainer
from bita.tuning.training_texts import TrainingText, cut_text, split_held_out, usable

# The base settings, of which each run changes one: the defaults, with rates raised by a sweep.
THREE_MASKS: dict[str, Any] = {"mask_rate": 1e-2, "prefix_rate": 1e-2, "pair_rank": 0}
# the recipe of the default adapter's second run
FEW_ROWS: dict[str, Any] = {
    **{"num_masks": 1, "num_anchors": 126, "batch_size": 6, "loss": "mix", "weights": "decay"},
    **{"mask_rate": 1e-2, "prefix_rate": 1e-2, "pair_rate": 2e-3},
}
RUNS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "seed 1": {"seed": 1},
    "prefix 0": {"prefix_length": 0},
    "prefix 32": {"prefix_length": 32},
    "prefix normal": {"prefix_start": "normal"},
    "masks normal": {"mask_start": "normal"},
    "masks 2": {"num_masks": 2, "num_anchors": 60},
    "masks 4": {"num_masks": 4, "num_anchors": 30},
    "loss ce": {"loss": "ce"},
    "loss mix": {"loss": "mix"},
    "decay 1": {"decay": 1.0},
    "decay 0.6": {"decay": 0.6},
    "anchors consecutive": {"anchors": "consecutive"},
    "anchors per text 80": {"num_anchors": 80, "batch_size": 2},
    "anchors per text 20": {"num_anchors": 20, "batch_size": 8},
    "keep far 0.7": {"keep_far": 0.7, "num_anchors": 54},
    "dropout 0.1": {"dropout": 0.1},
    "rates 3e-3": {"mask_rate": 3e-3, "prefix_rate": 3e-3},
    "rates 3e-2": {"mask_rate": 3e-2, "prefix_rate": 3e-2},
    "mask rate 3e-2": {"mask_rate": 3e-2},
    "prefix rate 3e-2": {"prefix_rate": 3e-2},
    "lora 8": {"lora_rank": 8, "lora_rate": 1e-3},
    "lora 8, rate 3e-3": {"lora_rank": 8, "lora_rate": 3e-3},
    "lora 32": {"lora_rank": 32, "lora_rate": 1e-3},
    "lora 32, rate 3e-3": {"lora_rank": 32, "lora_rate": 3e-3},
    "lora 32, rate 3e-4": {"lora_rank": 32, "lora_rate": 3e-4},
    "lora 32, rate 1e-2": {"lora_rank": 32, "lora_rate": 1e-2},
    "lora 32, prefix 0": {"lora_rank": 32, "lora_rate": 1e-3, "prefix_length": 0},
    "lora 32, loss ce": {"lora_rank": 32, "lora_rate": 1e-3, "loss": "ce"},
    "clip 0": {"clip": 0.0},
    "lora 32, clip 0": {"lora_rank": 32, "clip": 0.0},
}
FEW_ROW_RUNS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "loss ce": {"loss": "ce"},
    "loss kl": {"loss": "kl"},
    "lora 16": {"lora_rank": 16},
    "pairs 0": {"pair_rank": 0},
    "pairs after": {"pairs": "after"},
    "seed 1": {"seed": 1},
    "pairs 128": {"pair_rank": 128},
    "prefix 48": {"prefix_length": 48},
    "prefix 0": {"prefix_length": 0},
    "masks 2": {"num_masks": 2, "num_anchors": 63},
    "masks 3, match": {"num_masks": 3, "num_anchors": 42, "weights": "match"},
    "masks 3, confidence": {"num_masks": 3, "num_anchors": 42, "weights": "confidence"},
    "masks 3": {"num_masks": 3, "num_anchors": 42},
    "lora 4": {"lora_rank": 4},
    "lora 64": {"lora_rank": 64},
    "rates 3e-2": {"mask_rate": 3e-2, "prefix_rate": 3e-2},
    "rates 3e-3": {"mask_rate": 3e-3, "prefix_rate": 3e-3},
    "pair rate 6e-3": {"pair_rate": 6e-3},
    "texts 60": {"texts": 60},
    "texts 240": {"texts": 240},
    "seed 2": {"seed": 2},
}
SETS = {"three-masks": (THREE_MASKS, RUNS), "few-rows": (FEW_ROWS, FEW_ROW_RUNS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True, help="conversations of `bita tune`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--set", choices=SETS, default="three-masks", help="set of runs")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these runs, in this order")
    parser.add_argument("--texts", type=int, help="texts to train on; default: all")
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--context-gb", type=float, default=4.0, help="memory for cached texts")
    args = parser.parse_args()
    base, runs = SETS[args.set]
    if unknown := set(args.only or ()) - set(runs):
        parser.error(f"{args.set} has no {', '.join(sorted(unknown))}; it has {', '.join(runs)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    checkpoint = open_checkpoint(args.model)
    texts = ModelTexts.of(checkpoint)
    data = Dataset.load(args.data, texts.identity, texts.tokenizer_sha256)
    cut = [cut_text(c.prompt_ids, c.response_ids, 1024) for c in data]
    train, held_out = split_held_out(usable(cut), args.held_out, seed=0)
    model = MaskModel(load_base_model(checkpoint, args.dtype, args.device))
    contexts = Contexts(model, int(args.context_gb * 2**30))
    claims = args.out.with_suffix(".claims")
    claims.mkdir(parents=True, exist_ok=True)
    for name in args.only or runs:
        if name in _done(args.out) or not _claim(claims / name):
            continue
        changes = dict(runs[name])
        entry = {"name": name, "changes": changes, "steps": args.steps, "dtype": args.dtype}
        own = train[: changes.get("texts", args.texts)]
        kept = {key: value for key, value in changes.items() if key != "texts"}
        settings = TuneSettings(**{"num_steps": args.steps, **base, **kept})
        entry |= run(checkpoint, model, own, held_out, settings, contexts)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(name, entry["tokens_per_step"], f"{entry['seconds']:.0f} s", flush=True)


def run(
    checkpoint: Any,
    model: MaskModel,
    train: list[TrainingText],
    held_out: list[TrainingText],
    settings: TuneSettings,
    contexts: Contexts,
) -> dict[str, Any]:
    """Tune from the start and judge; "seconds" is the time of the training steps."""
    adapter = starting_adapter(checkpoint, model, train, settings)
    parameters = starting_parameters(model, adapter, settings)
    with tempfile.TemporaryDirectory() as directory:
        files = RunFiles(Path(directory), "sweep")
        trainer = Trainer(model, parameters, train, settings, files, contexts=contexts)
        began = time.monotonic()
        reports = [trainer.train_step() for _ in range(settings.num_steps)]
        seconds = time.monotonic() - began
    if settings.pair_rank and parameters.joint_pairs is None:
        pair_texts = train[: settings.pair_texts]
        parameters.pairs = tune_pairs(
            model, parameters, pair_texts, settings.pair_rank, settings.seed
        )
    quality = evaluate(model, parameters, held_out)
    report = quality.report()
    chain = quality.tokens_per_step(Tree.chain(settings.num_masks))
    return {
        "num_train": len(train),
        "num_held_out": len(held_out),
        "rows": sum(report.num_rows for report in reports),
        "seconds": seconds,
        "tokens_per_step": {"chain": chain, **report["tokens_per_step"]},
        "accuracy": report["accuracy"],
        "last_loss": sum(report.loss for report in reports[-10:]) / len(reports[-10:]),
        "texts": by_text(quality, held_out),
    }


def by_text(quality: DraftQuality, texts: list[TrainingText]) -> list[list[int]]:
    """Count places in each text.

    Returns:
        For each text: all places, those where the first draft of mask 0 is right, those without a
        matching n-gram of the text, and those without a match where the draft is right.
    """
    found = []
    for ranks, text in zip(quality.tables, texts, strict=True):
        right = ranks[:, 0] == 1
        is_new = ~_find_matches(text, len(right))
        found.append([len(right), int(right.sum()), int(is_new.sum()), int(right[is_new].sum())])
    return found


def _find_matches(text: TrainingText, num_places: int) -> BoolArray:
    """Return [num_places], whether the text's n-grams guess the token that mask 0 drafts."""
    index, first = NgramIndex(), max(text.num_prompt - 1, 0) + 1
    index.start(text.token_ids[:first])
    found = np.zeros(num_places, np.bool_)
    for place, token in enumerate(text.token_ids[first : first + num_places]):
        index.extend([token])
        found[place] = index.match_length() > 0
    return found


def _done(path: Path) -> set[str]:
    if not path.exists():
        return set()
    return {json.loads(line)["name"] for line in path.read_text(encoding="utf-8").splitlines()}


def _claim(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    main()
