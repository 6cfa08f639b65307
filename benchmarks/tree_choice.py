"""Compare the tree that calibration chose with others, on prompts it was not chosen on.

    python benchmarks/tree_choice.py engines/*-int4 engines/*-fp32 --prompts mt_bench.jsonl \
        --out benchmarks/results/tree_choice.json

- Contest: the engine's tree, AR with one row, the best trees by state, the best single tree, BiTA's
  triangle, and random trees of 2 rows up to the largest tree of any state. All answer a few prompts
  of each category, interleaved.
- Sources: the best trees with drafts of masks alone, of the text alone (n-grams), and of both, by
  category.

All figures are reported with those that calibration expects. Run it on an otherwise idle device, on
which the engines were calibrated.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peer_report import describe_machine

from bita.calibration.acceptance import Acceptance
from bita.calibration.choose_tree import Candidate, expected_of, forecast_trees
from bita.calibration.latency import Latency
from bita.calibration.turns import Timed, decode_in_turns, together
from bita.cli.shared.progress import progress_bars
from bita.cli.shared.trees import states_of
from bita.data.prompts import Question, evenly, read_questions
from bita.dialect_spec import DIALECTS
from bita.engine import CALIBRATION_FILE, open_engine, read_calibration
from bita.errors import BitaError, EngineError
from bita.progress import OnCount, OnProgress
from bita.runtime.session import Session
from bita.tree import Tree
from bita.tree_table import Trees, TreeTable

AR, CHOSEN, BEST, TRIANGLE = "AR", "chosen", "best", "triangle (5,4,3)"
SINGLE = "best single tree"
RANDOM_RANKS = 5  # of nodes in random trees, as in the triangle


@dataclass(frozen=True)
class Calibrated:
    """A loaded engine with the measurements in its calibration.json."""

    session: Session
    acceptance: Acceptance
    latency: Latency

    @classmethod
    def open(cls, path: Path, num_threads: int) -> "Calibrated":
        engine = open_engine(path)
        report = read_calibration(engine)
        missing = [topic for topic in ("acceptance", "latency", "tree") if topic not in report]
        if missing:
            raise EngineError(
                f"engine {path} has no {missing[0]} in its {CALIBRATION_FILE}; "
                f"run: bita calibrate tree {path}"
            )
        acceptance = Acceptance.from_json(report["acceptance"])
        latency = Latency.from_json(report["latency"], str(path))
        return cls(Session.open(path, num_threads=num_threads), acceptance, latency)

    def planned(self, num_masks: int | None = None, **sources: Any) -> Sequence[Candidate]:
        """Return trees and trees by state, those expected to be fastest first."""
        masks = self.session.adapter.num_masks if num_masks is None else num_masks
        forecast = forecast_trees(
            self.acceptance,
            self.latency,
            masks,
            self._accepts,
            **sources,
            min_exact_rows=self.session.min_exact_rows,
        )
        return forecast.trees

    def best(self, num_masks: int | None = None, **sources: Any) -> Trees:
        """Return the trees expected to be fastest."""
        return self.planned(num_masks, **sources)[0].tree

    def using(self, tree: Trees) -> Session:
        return self.session.using(tree=tree, min_rows=1 if tree.is_ar else None)

    def expected(self, tree: Trees) -> dict[str, float]:
        """Return the tokens per step and per second that calibration expects."""
        if tree.is_ar:
            return {"tokens_per_step": 1.0, "tokens_per_second": round(self._ar_speed(), 2)}
        rows = self.session.min_exact_rows
        found = expected_of(tree, self.acceptance, self.latency, self._accepts, rows)
        return {
            "tokens_per_step": round(found.expected_tokens, 4),
            "tokens_per_second": round(found.expected_speed, 2),
        }

    @property
    def _accepts(self) -> str:
        dialect = self.session.engine.manifest.dialect
        return DIALECTS[dialect].accepts(self.session.mode)

    def _ar_speed(self) -> float:
        return 1000 / self.latency.at(1, self.acceptance.mean_length)


def contest(engine: Calibrated, prompts: Sequence[Question], args: Any, show: OnProgress) -> Any:
    """Time the chosen tree and the others, interleaved."""
    planned = engine.planned()
    single = next(each.tree for each in planned if len(TreeTable.of(each.tree).trees) == 1)
    trees: dict[str, Trees] = {AR: Tree.root_only(), CHOSEN: engine.session.tree}
    trees |= {BEST: planned[0].tree, SINGLE: single, TRIANGLE: Tree.triangle()}
    rng, num_masks = np.random.default_rng(0), engine.session.adapter.num_masks
    sizes = range(2, max(planned[0].tree.num_rows, 2) + 1)
    for number in range(args.num_random):
        trees[f"random {number}"] = random_tree(sizes[number % len(sizes)], num_masks, rng)
    timed = time_by_name(engine, trees, prompts, args, lambda d, t: show("contest", d, t))
    return {name: describe(engine, trees[name], runs, timed[AR]) for name, runs in timed.items()}


def sources(engine: Calibrated, prompts: Sequence[Question], args: Any, show: OnProgress) -> Any:
    """Time drafts of masks alone, of the text alone, and of both, by category."""
    trees: dict[str, Trees] = {
        AR: Tree.root_only(),
        "masks": engine.best(min_levels=(0,)),
        "n-grams": engine.best(0, min_levels=(1,)),
        "both": engine.best(),
    }
    timed = time_by_name(engine, trees, prompts, args, lambda d, t: show("sources", d, t))
    places: dict[str, list[int]] = {}
    for place, question in enumerate(prompts):
        places.setdefault(question.category, []).append(place)
    report: dict[str, Any] = {}
    for name, runs in timed.items():
        report[name] = describe(engine, trees[name], runs, timed[AR])
        report[name]["by_category"] = {
            category: figures([runs[i] for i in inside], [timed[AR][i] for i in inside])
            for category, inside in places.items()
        }
    return report


def time_by_name(
    engine: Calibrated,
    trees: Mapping[str, Trees],
    prompts: Sequence[Question],
    args: Any,
    on_progress: OnCount,
) -> dict[str, list[Timed]]:
    """Decode with all trees, interleaved; the same tree under two names runs twice."""
    sessions = [engine.using(tree) for tree in trees.values()]
    texts = [engine.session.as_prompt(question.messages) for question in prompts]
    timed = decode_in_turns(sessions, texts, args.max_new_tokens, on_progress)
    return dict(zip(trees, timed, strict=True))


def describe(
    engine: Calibrated, tree: Trees, runs: Sequence[Timed], ar: Sequence[Timed]
) -> dict[str, Any]:
    return {
        "tree": str(tree),
        "rows": tree.num_rows,
        "states": {where: str(each) for where, each in states_of(tree)},
        "expected": engine.expected(tree),
        **figures(runs, ar),
    }


def figures(runs: Sequence[Timed], ar: Sequence[Timed]) -> dict[str, Any]:
    """Sum up answers; "same_text" counts those with the token ids of AR in one row."""
    total, plain = together(runs), together(ar)
    return {
        "tokens_per_step": round(total.tokens_per_step, 4),
        "tokens_per_second": round(total.tokens_per_second, 2),
        "times_ar": round(total.tokens_per_second / plain.tokens_per_second, 4),
        "same_text": sum(a.token_ids == b.token_ids for a, b in zip(runs, ar, strict=True)),
        "answers": len(runs),
    }


def random_tree(num_rows: int, num_masks: int, rng: np.random.Generator) -> Tree:
    """Return a tree of random nodes, up to the rank and depth of the triangle, and random masks."""
    masks: dict[tuple[int, ...], int] = {(): 1}
    used = 2
    while used < num_rows:
        path = list(masks)[rng.integers(len(masks))]
        if rng.random() < 0.5:
            if masks[path] == num_masks:
                continue
            masks[path] += 1
        else:
            rank = 1 + sum(other[:-1] == path for other in masks if other)
            if rank > RANDOM_RANKS or len(path) == num_masks:
                continue
            child = (*path, rank)
            masks[child] = 0
        used += 1
    return Tree.from_paths(masks, masks)


def print_table(title: str, report: Mapping[str, Any]) -> None:
    print(f"\n{title}")
    print("tree              rows  tokens/step expected  tokens/s expected  x AR")
    for name, row in report.items():
        expected = row["expected"]
        print(
            f"{name:17} {row['rows']:4}  {row['tokens_per_step']:11.3f} "
            f"{expected['tokens_per_step']:8.3f}  {row['tokens_per_second']:8.1f} "
            f"{expected['tokens_per_second']:8.1f}  {row['times_ar']:.3f}"
        )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all engines; rewrite the file after each one."""
    questions = read_questions(args.prompts)
    report = {**describe_machine(args.threads or 1), "prompts": args.prompts.name}
    report |= {"max_new_tokens": args.max_new_tokens, "engines": {}}
    for path in args.engines:
        engine = Calibrated.open(path, args.threads)
        result: dict[str, Any] = {"mode": engine.session.mode}
        with progress_bars() as show:
            if args.contest:
                result["contest"] = contest(engine, evenly(questions, args.contest), args, show)
            if args.sources:
                result["sources"] = sources(engine, evenly(questions, args.sources), args, show)
        for part in ("contest", "sources"):
            if part in result:
                print_table(f"{path.name}, {part}", result[part])
        report["engines"][path.name] = result
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engines", type=Path, nargs="+")
    parser.add_argument("--prompts", type=Path, required=True, help="file of MT-Bench questions")
    parser.add_argument("--contest", type=int, default=16, help="prompts of the contest; 0: none")
    parser.add_argument("--sources", type=int, default=80, help="prompts of the sources; 0: none")
    parser.add_argument("--num-random", type=int, default=20)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=0, help="0: one per physical core")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        measure(args)
    except BitaError as error:
        print(f"tree_choice: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
