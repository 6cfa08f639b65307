"""Compare ways to quantize a float checkpoint: symmetric or with minima, nearest or GPTQ.

    python benchmarks/float_checkpoint.py --rewriting rotate,reorder    # the default model
    python benchmarks/float_checkpoint.py MODEL --as-it-is              # MODEL has floats

If the file's weights are blocks, they are first rewritten to weights that compute the same function
but are not on a grid (`float_rewriting.py`). Each way makes an engine with native operators, which
keeps its blocks as they are. The engines are compared with the float32 engine on its own answers to
prompts that were not used for calibration. The report has KL, argmax, and the error of the outputs
of linear layers for the inputs of the float32 model on these answers. A run that was stopped
continues. One that has finished keeps the float32 engine, its answers and the moments in the work
directory. Results of other models in the output file are kept. Memory: about 10 bytes per weight.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from block_ways import WAYS, Way, num_bytes, output_errors, round_layers, weight_errors
from float_rewriting import STEPS, ArrayCheckpoint, BlocksCheckpoint, read_all, rewrite
from peer_report import describe_machine
from peers import Journal, say

from bita.calibration.calibrated_build import MAX_CAPACITY
from bita.calibration.moments import collect_moments
from bita.calibration.quality import Scored, measure_quality
from bita.calibration.sample_texts import answer_prompts
from bita.data.dataset import Conversation
from bita.data.model_texts import ModelTexts
from bita.data.prompts import TREE_PROMPTS
from bita.dialect_spec import NATIVE
from bita.engine import Engine, open_engine
from bita.errors import BitaError
from bita.export.build import (
    BuildOptions,
    CheckedBuild,
    build_engine,
    check_build,
    check_reference,
)
from bita.export.checkpoint import Checkpoint
from bita.export.quantization.gptq import Moments
from bita.export.sources import open_checkpoint
from bita.tree import Tree

HERE = Path(__file__).resolve().parent
GROUPS = 8  # groups of the texts to judge by, which yield the standard error of the mean
Figures = dict[str, Any]


class Experiment:
    """Experiment with one model: its float32 engine, its answers, and its layer inputs."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._source = open_checkpoint(args.model)
        self._tensors = read_all(self._source)
        if not args.as_it_is:
            rewrite(self._tensors, self._source.config, args.seed, args.rewriting.split(","))
        self._checkpoint = ArrayCheckpoint(self._source, self._tensors)
        self._folder: Path = args.work_dir / name_of(args)
        self._folder.mkdir(parents=True, exist_ok=True)
        self.journal_path = self._folder / "journal.jsonl"

    def run(self) -> Figures:
        """Measure all ways to round the model."""
        reference = self._float32("float32", self._checkpoint)
        train, held_out = self._answers(reference)
        seen = self._moments(reference, train, "train")
        judging = self._moments(reference, held_out, "held_out")
        texts = [Scored(ids_of(text), len(text.prompt_ids)) for text in held_out]
        settings = {"new_tokens": self._args.new_tokens, "texts": len(texts)}
        journal = Journal(self.journal_path, settings)
        ways = {}
        for name, way in WAYS.items():
            ways[name] = journal.get("way", name)
            if ways[name] is None:
                found = self._measure(way, reference, texts, seen, judging)
                ways[name] = journal.add("way", name, found)
                say(f"{name}: KL {found['kl']:.4f}, same argmax {found['same_greedy']:.2%}")
        rewriting = None
        if not self._args.as_it_is:
            plain = self._float32("before", ArrayCheckpoint(self._source, read_all(self._source)))
            rewriting = judge(reference, plain, texts)
        return {
            "rewriting": rewriting,
            "calibrated_on": {"texts": len(train), "tokens": sum(len(ids_of(t)) for t in train)},
            "judged_by": {"texts": len(texts), "positions": ways["gptq, minima"]["positions"]},
            "ways": ways,
        }

    def _float32(self, name: str, checkpoint: Checkpoint) -> Engine:
        path = self._folder / name
        if not path.exists():
            build_engine(check_reference(self._checked(checkpoint, path), path, MAX_CAPACITY))
        return open_engine(path)

    def _checked(self, checkpoint: Checkpoint, path: Path, precision: str = "int4") -> CheckedBuild:
        options = BuildOptions(
            precision, capacity=MAX_CAPACITY, tree=Tree.root_only(), dialect=NATIVE.name
        )
        return check_build(checkpoint, None, path, options)

    def _answers(self, reference: Engine) -> tuple[list[Conversation], list[Conversation]]:
        """Answer a build's own prompts, to calibrate on, and other prompts, to judge by."""
        texts, new_tokens = ModelTexts.of(self._checkpoint), self._args.new_tokens
        pairs = [
            answer_prompts(reference, texts, prompts, folder, new_tokens, show_answers)
            for prompts, folder in (
                (None, self._folder),
                (TREE_PROMPTS, self._folder / "more"),
            )
        ]
        own, more = pairs
        return list(own.train), [*own.held_out, *more.train, *more.held_out]

    def _moments(self, reference: Engine, texts: Sequence[Conversation], name: str) -> Moments:
        build = self._checked(self._checkpoint, self._folder / "engine")
        folder = self._folder / f"moments-{name}"
        return collect_moments(reference, build.architecture, [*map(ids_of, texts)], folder)

    def _measure(
        self,
        way: Way,
        reference: Engine,
        texts: Sequence[Scored],
        seen: Moments,
        judging: Moments,
    ) -> Figures:
        blocks = round_layers(self._checkpoint, way, seen)
        path = self._folder / "engine"
        checkpoint = BlocksCheckpoint(self._source, self._tensors, blocks)
        build_engine(self._checked(checkpoint, path, way.precision))
        return {
            **judge(reference, open_engine(path), texts),
            "linear_bytes": num_bytes(blocks),
            "output_error": output_errors(self._checkpoint, blocks, judging),
            "output_error_on_calibration": output_errors(self._checkpoint, blocks, seen),
            "weight_error": weight_errors(self._checkpoint, blocks),
        }


def name_of(args: argparse.Namespace) -> str:
    """Return the key of a model and its rewriting, for the results and the work directory."""
    done = "as-it-is" if args.as_it_is else f"{args.rewriting.replace(',', '-')}-{args.seed}"
    return f"{Path(args.model).stem}-{done}"


def ids_of(text: Conversation) -> tuple[int, ...]:
    return (*text.prompt_ids, *text.response_ids)


def show_answers(done: int, total: int) -> None:
    if done == total or not done % 20:
        say(f"answers: {done} of {total}")


def judge(reference: Engine, engine: Engine, texts: Sequence[Scored]) -> Figures:
    """Measure the quality on all texts, and its standard error from groups of them."""
    parts = [measure_quality(reference, engine, texts[start::GROUPS]) for start in range(GROUPS)]
    positions = np.array([part.num_tokens for part in parts])
    report: Figures = {"positions": int(positions.sum())}
    for name in ("kl", "same_greedy"):
        values = np.array([asdict(part)[name] for part in parts])
        mean = float(np.average(values, weights=positions))
        error = float(values.std(ddof=1) / GROUPS**0.5)
        report |= {name: float(f"{mean:.5g}"), f"{name}_standard_error": float(f"{error:.2g}")}
        report[f"{name}_of_groups"] = [float(f"{value:.5g}") for value in values]
    return report


def print_table(report: Figures) -> None:
    """Print one line for each way."""
    positions = report["judged_by"]["positions"]
    kinds = next(iter(report["ways"].values()))["output_error"]
    print(f"\n{positions} positions; KL in nats; same argmax and output errors in %")
    print(f"{'':20}{'KL':>15}{'argmax':>8}{'MB':>6}" + "".join(f"{kind:>10}" for kind in kinds))
    for name, way in report["ways"].items():
        errors = "".join(f"{100 * error:10.2f}" for error in way["output_error"].values())
        kl = f"{way['kl']:.4f} ± {way['kl_standard_error']:.4f}"
        size = way["linear_bytes"] / 1e6
        print(f"{name:20}{kl:>15}{100 * way['same_greedy']:8.2f}{size:6.0f}{errors}")
    if report["rewriting"]:
        print(f"the rewriting itself: KL {report['rewriting']['kl']:.2g}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct", help="as for `bita`")
    parser.add_argument("--as-it-is", action="store_true", help="do not rewrite its weights")
    parser.add_argument("--rewriting", default=",".join(STEPS), help="steps; default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rewriting")
    parser.add_argument("--new-tokens", type=int, default=64, help="limit of each answer")
    parser.add_argument("--work-dir", type=Path, default=Path(".cache/float_checkpoint"))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "float_checkpoint.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        experiment = Experiment(args)
        figures = experiment.run()
    except BitaError as error:
        print(f"float_checkpoint: {error}", file=sys.stderr)
        return 1
    print_table(figures)
    known = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    known[name_of(args)] = {**describe_machine(1), **figures}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    experiment.journal_path.unlink()
    print(f"written to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
