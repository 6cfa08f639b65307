"""Count by replay what the guard of trees by state saves and costs on single texts.

    python benchmarks/guard_regret.py engines/*-int4 --prompts mt_bench.jsonl \
        --out benchmarks/results/guard_regret.json

Each text is replayed from its measured drafts and the costs T(q) / T(1) of steps, so the result is
free of timing noise. It is replayed plainly, with the trees that calibration expects to be fastest,
and with the same trees and their guard. Regret is the time of a text beyond the shorter one of
plain decoding and the trees without a guard. The trees are found with the acceptance in the
engine's calibration.json; without --prompts they are judged by the same texts.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bita.calibration.acceptance import Acceptance, measure_acceptance
from bita.calibration.choose_tree import forecast_trees
from bita.calibration.latency import Latency
from bita.calibration.replay import replay
from bita.cli.shared.progress import progress_bars
from bita.data.prompts import read_prompts
from bita.dialect_spec import DIALECTS
from bita.engine import Engine, open_engine, read_calibration
from bita.errors import BitaError, EngineError
from bita.runtime.text.prompt_encoder import PromptEncoder
from bita.tensors import Float64Array
from bita.tree_table import TreeTable

MANY = 64  # rows up to which given costs continue with their last slope


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all engines; rewrite the file after each one."""
    report: dict[str, Any] = {"prompts": args.prompts.name if args.prompts else "calibration's own"}
    report |= {"max_new_tokens": args.max_new_tokens, "engines": {}}
    for path in args.engines:
        engine = open_engine(path)
        known, latency = read_measurements(engine, args.costs)
        table = best_table_of(engine, known, latency)
        acceptance = acceptance_on(engine, args) if args.prompts else known
        result = {"tree": str(table), "costs": table.costs, **figures(acceptance, table, engine)}
        print(path.name, json.dumps({k: v for k, v in result.items() if k != "texts"}))
        report["engines"][path.name] = result
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def read_measurements(engine: Engine, costs: Sequence[float]) -> tuple[Acceptance, Latency]:
    """Return the engine's measured acceptance, and its latency or one with the given costs."""
    report = read_calibration(engine)
    wanted = ("acceptance",) if costs else ("acceptance", "latency")
    missing = [topic for topic in wanted if topic not in report]
    if missing:
        raise EngineError(
            f"engine {engine.path} has no {missing[0]} in its calibration.json; "
            f"run: bita calibrate {missing[0]} {engine.path}"
        )
    acceptance = Acceptance.from_json(report["acceptance"])
    if not costs:
        return acceptance, Latency.from_json(report["latency"], str(engine.path))
    slope = costs[-1] - costs[-2]
    more = [costs[-1] + slope * (n + 1) for n in range(MANY - len(costs))]
    curve = ((*costs, *more),)
    sizes = tuple(range(1, len(curve[0]) + 1))
    return acceptance, Latency(sizes, (1,), curve, curve, curve, 0.0, 1, {"costs": "given"})


def best_table_of(engine: Engine, acceptance: Acceptance, latency: Latency) -> TreeTable:
    """Return the trees expected to be fastest, with their costs."""
    manifest = engine.manifest
    spec = DIALECTS[manifest.dialect]
    rows = 1 if spec.exact_trees else 2
    accepts = spec.accepts(manifest.mode)
    forecast = forecast_trees(acceptance, latency, manifest.num_masks, accepts, min_exact_rows=rows)
    return TreeTable.of(forecast.trees[0].tree)


def acceptance_on(engine: Engine, args: argparse.Namespace) -> Acceptance:
    """Measure the drafts on the engine's answers to the prompts."""
    encoder = PromptEncoder.of_engine(engine)
    prompts = [encoder.as_prompt(each) for each in read_prompts(args.prompts, args.limit)]
    with progress_bars() as show:
        return measure_acceptance(
            engine,
            prompts,
            args.max_new_tokens,
            args.threads,
            on_text=lambda number, _: show("acceptance", number + 1, len(prompts)),
        )


def figures(acceptance: Acceptance, table: TreeTable, engine: Engine) -> dict[str, Any]:
    """Compute the figures of an engine.

    Speeds are relative to plain decoding. Each entry of "texts" has the tokens of a text, and its
    time without and with the guard, in plain steps.
    """
    mode = DIALECTS[engine.manifest.dialect].accepts(engine.manifest.mode)
    free, _ = step_costs(acceptance, replace(table, costs=()), table.costs, mode)
    guarded, share = step_costs(acceptance, table, table.costs, mode)
    plain = np.array([len(text) for text in acceptance.texts], np.float64)
    kept = plain > 0
    plain, free, guarded = plain[kept], free[kept], guarded[kept]
    best = np.minimum(plain, free)
    return {
        "num_texts": len(plain),
        "speed": {
            "free": ratio(plain.sum(), free.sum()),
            "guarded": ratio(plain.sum(), guarded.sum()),
        },
        "worst_text": {
            "free": ratio_of_worst(plain, free),
            "guarded": ratio_of_worst(plain, guarded),
        },
        "slower_texts": {
            "free": int((free > plain).sum()),
            "guarded": int((guarded > plain).sum()),
        },
        "mean_regret": {
            "plain": round(float((plain / best - 1).mean()), 4),
            "free": round(float((free / best - 1).mean()), 4),
            "guarded": round(float((guarded / best - 1).mean()), 4),
        },
        "guarded_steps": round(share, 4),
        "texts": np.stack([plain, free, guarded], 1).round(2).tolist(),
    }


def step_costs(
    acceptance: Acceptance, table: TreeTable, costs: Sequence[float], mode: str
) -> tuple[Float64Array, float]:
    """Return the time of each text in plain steps, and the share of steps with a smaller tree."""
    visits = replay(acceptance, table, mode)
    smaller = [visit.tree != table.trees[visit.number] for text in visits for visit in text]
    times = [sum(costs[visit.tree.num_rows - 1] for visit in text) for text in visits]
    return np.array(times), float(np.mean(smaller))


def ratio(plain: float, other: float) -> float:
    return round(float(plain / other), 4)


def ratio_of_worst(plain: Float64Array, other: Float64Array) -> float:
    return round(float((plain / other).min()), 4)


def costs_of(text: str) -> list[float]:
    """Parse the costs of the command line."""
    costs = [float(part) for part in text.split(",")]
    if len(costs) < 2 or costs[0] != 1 or sorted(costs) != costs:
        raise argparse.ArgumentTypeError("give two or more numbers that rise from 1")
    return costs


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "engines", type=Path, nargs="+", help="engines with measured acceptance and latency"
    )
    parser.add_argument("--prompts", type=Path, help="to judge by; default: calibration's texts")
    parser.add_argument("--limit", type=int, help="number of prompts")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument(
        "--costs", type=costs_of, default=[], help="T(1), T(2), ... / T(1) instead of the engine's"
    )
    parser.add_argument("--threads", type=int, default=0, help="0: one per physical core")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    try:
        measure(args)
    except BitaError as error:
        print(f"guard_regret: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
