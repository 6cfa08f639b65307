"""Compute tokens per step at few rows with drafts of masks, of n-grams, and of both.

    python benchmarks/few_rows.py engines/a-int4 engines/b-int4 --prompts mt_bench.jsonl \
        --out benchmarks/results/few_rows.json

For each engine, drafts are measured after every token of its answers to the bundled prompts and to
the given ones. Trees by state are searched on the bundled prompts, for many slopes s of a cost of
1 + s * (q - 1) for q rows. They are replayed on the given prompts, which yields the mean rows and
tokens of a step; between two slopes these figures are interpolated. Intervals cover 95 % of
resampled texts.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peer_report import describe_machine

from bita.calibration.acceptance import Acceptance, measure_acceptance
from bita.calibration.replay import replay
from bita.calibration.table_search import best_table
from bita.cli.shared.progress import progress_bars
from bita.data.prompts import read_prompts
from bita.engine import Engine, open_engine
from bita.errors import BitaError
from bita.progress import OnCount, OnProgress
from bita.runtime.text.prompt_encoder import Prompt, PromptEncoder
from bita.tensors import Float64Array
from bita.tree import Tree
from bita.tree_table import Trees, TreeTable

BUDGETS = (2, 3, 3.5, 4, 6, 8, 16)  # mean rows of a step
SLOPES = (0.01, 0.03, 0.05, 0.07, 0.09, 0.11, 0.14, 0.17, 0.2, 0.25, 0.3, 0.37, 0.45, 0.6, 0.9)
MAX_ROWS = 24
RESAMPLED = 200
SOURCES = {"masks": (True, False), "n-grams": (False, True), "both": (True, True)}


@dataclass(frozen=True)
class Steps:
    """Replay of some texts with trees by state."""

    tokens: Float64Array  # [texts], that the steps give
    steps: Float64Array  # [texts]
    rows: Float64Array  # [texts], of all steps


def count_steps(acceptance: Acceptance, trees: Trees) -> Steps:
    """Replay the texts and count steps and rows."""
    sizes = [tree.num_rows for tree in TreeTable.of(trees).trees]
    visits = replay(acceptance, trees)
    return Steps(
        np.array([len(text) for text in acceptance.texts], np.float64),
        np.array([len(text) for text in visits], np.float64),
        np.array([sum(sizes[visit.number] for visit in text) for text in visits], np.float64),
    )


def mean_time(counted: Steps, slope: float) -> float:
    """Return the mean time of a token, in units of a step of one row."""
    total = counted.steps + slope * (counted.rows - counted.steps)
    return float(total.sum() / counted.tokens.sum())


def tokens_at(curve: Sequence[Steps], texts: np.ndarray[Any, Any]) -> list[float]:
    """Return the tokens per step at each of BUDGETS, over the given texts."""
    rows, tokens = [1.0], [1.0]
    for steps in curve:
        count = steps.steps[texts].sum()
        rows.append(float(steps.rows[texts].sum() / count))
        tokens.append(float(steps.tokens[texts].sum() / count))
    order = np.argsort(rows)
    # a step may have fewer rows than its budget: take the best of at most that size
    best = np.maximum.accumulate(np.array(tokens)[order])
    return [float(np.interp(budget, np.array(rows)[order], best)) for budget in BUDGETS]


def measure_source(
    own: Acceptance, others: Acceptance, num_masks: int, uses_masks: bool, uses_text: bool
) -> dict[str, Any]:
    """Compute the tokens per step by rows, with intervals."""
    curve = []
    for slope in SLOPES:
        times = 1 + slope * np.arange(MAX_ROWS)
        masks = num_masks if uses_masks else 0
        # a mask pays only in the next step, so a search that begins with the root alone does not
        # find it, and one that begins with masks does not give all of them up
        starts: list[Trees] = [Tree.root_only()]
        if uses_text:
            starts.append(best_table(own, times.tolist(), 0, "tree", starts[0]))
        if masks:
            starts.append(Tree.chain(1, 1))
        found = [best_table(own, times.tolist(), masks, "tree", s, uses_text) for s in starts]
        table = min(found, key=lambda trees: mean_time(count_steps(own, trees), slope))
        curve.append(count_steps(others, table))
    every = np.arange(len(others.texts))
    rng = np.random.default_rng(0)
    drawn = [tokens_at(curve, rng.choice(every, len(every))) for _ in range(RESAMPLED)]
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    return {
        str(budget): {"tokens": round(found, 3), "low": round(lo, 3), "high": round(hi, 3)}
        for budget, found, lo, hi in zip(BUDGETS, tokens_at(curve, every), low, high, strict=True)
    }


def _measure(
    engine: Engine, prompts: Sequence[Prompt], args: argparse.Namespace, show: OnCount, kept: str
) -> Acceptance:
    """Measure the drafts after each token of the answers, or read them from `args.work`."""
    file = args.work / f"{kept}.json" if args.work else None
    if file and file.exists():
        return Acceptance.from_json(json.loads(file.read_text(encoding="utf-8")))
    acceptance = measure_acceptance(
        *(engine, prompts, args.max_new_tokens, args.threads),
        on_text=lambda number, _: show(number + 1, len(prompts)),
    )
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(acceptance.to_json()), encoding="utf-8")
    return acceptance


def measure_engine(path: Path, args: argparse.Namespace, show: OnProgress) -> dict[str, Any]:
    """Measure all figures of an engine."""
    engine = open_engine(path)
    encoder = PromptEncoder.of_engine(engine)
    sets = {"own prompts": read_prompts(), "prompts": read_prompts(args.prompts)}
    found = {
        name: _measure(
            engine,
            [encoder.as_prompt(each) for each in list(prompts)[: args.limit]],
            args,
            partial(show, f"{path.name}, {name}"),
            f"{path.name}-{name.split()[0]}-{args.limit}",
        )
        for name, prompts in sets.items()
    }
    own, others = found.values()
    first = others.table()[0]["shares"]
    most = len(others.table())
    return {
        "positions": others.num_positions,
        "first_draft_right": first[0],
        "among_first_2": round(sum(first[:2]), 5),
        "by_masks": {
            num_masks: {
                name: measure_source(own, others, num_masks, *uses)
                for name, uses in SOURCES.items()
            }
            for num_masks in range(1, most + 1)
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("engines", nargs="+", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="questions to measure on")
    parser.add_argument("--limit", type=int, default=80, help="prompts of each set")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder to keep measured drafts in")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    try:
        with progress_bars() as show:
            engines = {path.name: measure_engine(path, args, show) for path in args.engines}
    except BitaError as error:
        print(f"few_rows: {error}", file=sys.stderr)
        return 1
    report = {"device": describe_machine(args.threads), "engines": engines}
    text = json.dumps(report, indent=1) + "\n"
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
