"""Measure what drafts gain by kind of text, and by the adapter that drafts.

    python benchmarks/gains.py none=ENGINE shipped=ENGINE LoRA=ENGINE --prompts mt_bench.jsonl \
        --prompts humaneval.jsonl --out benchmarks/results/gains.json

The engines have the same weights and differ in their adapters and trees. Every prompt is answered
plainly by the first engine, with the drafts of each engine, and plainly again, several times. The
time of an answer is the median of its rounds. The second plain answer shows the noise. A kind of
text is the category of its prompts, or the name of the file if they have none.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peer_report import describe_machine
from single_answers import spread

from bita.calibration.turns import Timed, decode_in_turns
from bita.cli.shared.progress import progress_bars
from bita.data.prompts import Question, evenly, read_questions
from bita.errors import BitaError
from bita.runtime.native.library import use_isa
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
    if args.isa:
        use_isa(args.isa)
    sessions = {
        name: Session.open(path, num_threads=args.threads) for name, path in engines.items()
    }
    first = next(iter(sessions.values()))
    plainly = first.using(tree=Tree.root_only())
    questions = questions_by_kind(args.prompts, args.limit)
    prompts = [first.as_prompt(question.messages) for _, question in questions]
    with progress_bars() as show:
        timed = decode_in_turns(
            [*sessions.values(), plainly, plainly],
            prompts * args.turns,
            args.max_new_tokens,
            lambda done, total: show("answers", done, total),
        )
    *drafted, plain, again = (Answers.of(runs, args.turns) for runs in timed)
    report: dict[str, Any] = {
        **describe_machine(args.threads),
        "prompts": [path.name for path in args.prompts],
        "num_prompts": len(questions),
        "max_new_tokens": args.max_new_tokens,
        "turns": args.turns,
        "isa": args.isa,
        "plainly_again": spread(plain.milliseconds / again.milliseconds),
        "engines": {},
    }
    kinds = np.array([kind for kind, _ in questions])
    for (name, session), own in zip(sessions.items(), drafted, strict=True):
        report["engines"][name] = {
            "tuned_on": session.adapter.tuned_on or None,
            "tree": str(session.tree),
            "same_text": sum(a == b for a, b in zip(plain.token_ids, own.token_ids, strict=True)),
            "all": _compare(own, plain, np.arange(len(kinds))),
            "by_kind": {
                kind: _compare(own, plain, np.flatnonzero(kinds == kind))
                for kind in dict.fromkeys(kinds.tolist())
            },
        }
    return report


@dataclass(frozen=True)
class Answers:
    """The answers of a session to all prompts."""

    milliseconds: NDArray[Any]  # of each answer, the median of its rounds
    runs: list[Timed]  # of the first round, whose counts all rounds share
    token_ids: list[set[tuple[int, ...]]]  # the texts of each answer, one if all rounds agree

    @classmethod
    def of(cls, timed: Sequence[Timed], turns: int) -> "Answers":
        """Summarize the rounds, which follow each other in `timed`."""
        times = np.array([run.milliseconds for run in timed]).reshape(turns, -1)
        count = times.shape[1]
        texts = [{run.token_ids for run in timed[place::count]} for place in range(count)]
        return cls(np.median(times, axis=0), [*timed[:count]], texts)


def _compare(own: Answers, plain: Answers, chosen: NDArray[Any]) -> dict[str, Any]:
    """Compare the chosen answers with the plain ones."""
    runs = [own.runs[place] for place in chosen]
    num_tokens = sum(run.num_tokens for run in runs)
    num_steps = sum(run.num_steps for run in runs)
    plain_ms, own_ms = plain.milliseconds[chosen], own.milliseconds[chosen]
    return {
        "prompts": len(runs),
        "tokens": num_tokens,
        "plain_tokens_per_second": round(float(1000 * num_tokens / plain_ms.sum()), 1),
        "tokens_per_second": round(float(1000 * num_tokens / own_ms.sum()), 1),
        "times_plain": round(float(plain_ms.sum() / own_ms.sum()), 3),
        "answers": spread(plain_ms / own_ms),
        "tokens_per_step": round(num_tokens / num_steps, 3),
        "mask_tokens_per_step": round(sum(run.num_from_masks for run in runs) / num_steps, 3),
        "guessed_tokens_per_step": round(sum(run.num_from_text for run in runs) / num_steps, 3),
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
    parser.add_argument("--isa", help="of the native operators, such as avx2; default: the fastest")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a line per engine, and write the JSON."""
    args = parse_arguments(argv)
    try:
        report = measure(dict(args.engines), args)
    except (BitaError, ValueError) as error:  # ValueError: an unknown instruction set
        print(f"gains: {error}", file=sys.stderr)
        return 1
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, engine in report["engines"].items():
        print(f"{name}: {json.dumps(engine['all'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
