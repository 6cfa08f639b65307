"""Measure what drafts gain by kind of text, and by the adapter that drafts.

    python benchmarks/gains.py "none=ENGINE" "shipped=ENGINE" --prompts mt_bench.jsonl \
        --prompts humaneval.jsonl --out benchmarks/results/gains.json

The engines hold the same weights and differ in their adapters and trees. Every prompt is answered
plainly by the first engine, with drafts by each one, and plainly again, several times alternately.
The time of an answer is the median of its rounds. The second plain answer shows the noise. A kind
of text is the category of its prompts, or the name of the file if they have none.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peer_report import describe_machine

from bita.calibration.turns import Timed, decode_in_turns
from bita.cli.shared.progress import progress_bars
from bita.data.prompts import Question, evenly, read_questions
from bita.errors import BitaError
from bita.runtime.session import Session
from bita.tree import Tree


def questions_by_kind(paths: Sequence[Path], limit: int | None) -> list[tuple[str, Question]]:
    """Return (kind, question) of `limit` questions of each file, spread evenly over it."""
    return [
        (path.stem if question.category == "all" else question.category, question)
        for path in paths
        for question in evenly(read_questions(path), limit)
    ]


def measure(engines: Mapping[str, Path], args: argparse.Namespace) -> dict[str, Any]:
    """Measure all engines on all prompts, and summarize them by kind of text."""
    sessions = {
        name: Session.open(path, num_threads=args.threads) for name, path in engines.items()
    }
    first = next(iter(sessions.values()))
    plain = first.using(tree=Tree.root_only())
    questions = questions_by_kind(args.prompts, args.limit)
    with progress_bars() as show:
        timed = decode_in_turns(
            [plain, *sessions.values(), plain],
            [first.as_prompt(question.messages) for _, question in questions] * args.turns,
            args.max_new_tokens,
            lambda done, total: show("answers", done, total),
        )
    shape = (len(sessions) + 2, args.turns, len(questions))
    times = np.array([[run.milliseconds for run in runs] for runs in timed]).reshape(shape)
    medians = np.median(times, axis=1)
    runs = [each[: len(questions)] for each in timed]
    kinds = [kind for kind, _ in questions]
    report: dict[str, Any] = {
        **describe_machine(args.threads),
        "prompts": [path.name for path in args.prompts],
        "num_prompts": len(questions),
        "max_new_tokens": args.max_new_tokens,
        "turns": args.turns,
        "plainly_again": _ratios(medians[0] / medians[-1]),
        "engines": {},
    }
    for number, (name, session) in enumerate(sessions.items(), 1):
        report["engines"][name] = {
            "adapter": session.engine.manifest.tuned_on or None,
            "tree": str(session.tree),
            "same_text": sum(
                a.token_ids == b.token_ids for a, b in zip(timed[0], timed[number], strict=True)
            )
            // args.turns,
            "all": _compare(runs, medians, number, np.arange(len(kinds))),
            "by_kind": {
                kind: _compare(runs, medians, number, np.flatnonzero(np.array(kinds) == kind))
                for kind in dict.fromkeys(kinds)
            },
        }
    return report


def _compare(
    runs: Sequence[Sequence[Timed]], medians: NDArray[Any], number: int, chosen: NDArray[Any]
) -> dict[str, Any]:
    """Compare the chosen answers of an engine with the plain ones, which are number 0."""
    drafted = [runs[number][place] for place in chosen]
    num_tokens = sum(run.num_tokens for run in drafted)
    num_steps = sum(run.num_steps for run in drafted)
    plain_ms, drafted_ms = medians[0, chosen].sum(), medians[number, chosen].sum()
    return {
        "prompts": len(drafted),
        "tokens": num_tokens,
        "plain_tokens_per_second": round(float(1000 * num_tokens / plain_ms), 1),
        "tokens_per_second": round(float(1000 * num_tokens / drafted_ms), 1),
        "times_plain": round(float(plain_ms / drafted_ms), 3),
        "answers": _ratios(medians[0, chosen] / medians[number, chosen]),
        "tokens_per_step": round(num_tokens / num_steps, 3),
        "mask_tokens_per_step": round(sum(run.num_from_masks for run in drafted) / num_steps, 3),
        "guessed_tokens_per_step": round(sum(run.num_from_text for run in drafted) / num_steps, 3),
    }


def _ratios(ratios: NDArray[Any]) -> dict[str, float]:
    """Summarize speeds of single answers, relative to plain decoding."""
    return {
        "min": round(float(ratios.min()), 3),
        "median": round(float(np.median(ratios)), 3),
        "max": round(float(ratios.max()), 3),
        "below_0.97": int((ratios < 0.97).sum()),
    }


def named_engine(text: str) -> tuple[str, Path]:
    """Parse NAME=ENGINE."""
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=ENGINE")
    return name, Path(path)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engines", type=named_engine, nargs="+", metavar="NAME=ENGINE")
    parser.add_argument("--prompts", type=Path, action="append", required=True)
    parser.add_argument("--limit", type=int, help="prompts of each file, spread evenly; all")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a line per engine, and write the JSON."""
    args = parse_arguments(argv)
    try:
        report = measure(dict(args.engines), args)
    except BitaError as error:
        print(f"gains: {error}", file=sys.stderr)
        return 1
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, engine in report["engines"].items():
        print(f"{name}: {json.dumps(engine['all'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
