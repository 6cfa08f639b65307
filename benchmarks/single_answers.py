"""Measure the speed of single answers with drafts, next to the noise of plain decoding.

    python benchmarks/single_answers.py ENGINE --prompts mt_bench.jsonl \
        --out benchmarks/results/single_answers.json

Every prompt is answered plainly, with the engine's trees, and plainly again, several times
alternately. The time of an answer is the median of its rounds. The second plain answer shows the
noise.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peer_report import describe_machine

from bita.calibration.turns import Timed, decode_in_turns
from bita.cli.shared.progress import progress_bars
from bita.data.prompts import evenly, read_questions
from bita.errors import BitaError
from bita.runtime.session import Session
from bita.tree import Tree


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the speed of every answer relative to its first plain one."""
    own = Session.open(args.engine, num_threads=args.threads)
    plain = own.using(tree=Tree.root_only())
    questions = evenly(read_questions(args.prompts), args.limit)
    prompts = [own.as_prompt(question.messages) for question in questions]
    with progress_bars() as show:
        timed = decode_in_turns(
            [plain, own, plain],
            prompts * args.turns,
            args.max_new_tokens,
            lambda done, total: show("answers", done, total),
        )
    times = np.array([[run.milliseconds for run in runs] for runs in timed])
    first, drafts, second = np.median(times.reshape(3, args.turns, len(prompts)), axis=1)
    counts = timed[1][: len(prompts)]
    same = [a.token_ids == b.token_ids for a, b in zip(timed[0], timed[1], strict=True)]
    return {
        **describe_machine(args.threads),
        "engine": args.engine.name,
        "tree": str(own.tree),
        "prompts": args.prompts.name,
        "num_prompts": len(prompts),
        "max_new_tokens": args.max_new_tokens,
        "turns": args.turns,
        "same_text": all(same),
        "plain_tokens_per_second": round(_tokens(counts) / first.sum() * 1000, 1),
        "tokens_per_second": round(_tokens(counts) / drafts.sum() * 1000, 1),
        "with_drafts": spread(first / drafts),
        "plainly_again": spread(first / second),
        "answers": [
            {
                "tokens": run.num_tokens,
                "tokens_per_step": round(run.tokens_per_step, 3),
                "with_drafts": round(float(a / b), 3),
                "plainly_again": round(float(a / c), 3),
            }
            for run, a, b, c in zip(counts, first, drafts, second, strict=True)
        ],
    }


def _tokens(runs: Sequence[Timed]) -> int:
    return sum(run.num_tokens for run in runs)


def spread(ratios: Any) -> dict[str, float]:
    """Summarize speeds relative to plain decoding."""
    return {
        "min": round(float(ratios.min()), 3),
        "median": round(float(statistics.median(ratios.tolist())), 3),
        "max": round(float(ratios.max()), 3),
        "below_0.97": int((ratios < 0.97).sum()),
    }


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="file of MT-Bench questions")
    parser.add_argument(
        "--limit", type=int, default=32, help="prompts, spread evenly over the file"
    )
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(argv)


def main() -> int:
    args = parse_arguments()
    try:
        report = measure(args)
    except BitaError as error:
        print(f"single_answers: {error}", file=sys.stderr)
        return 1
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in report.items() if key != "answers"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
