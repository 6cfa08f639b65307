"""Compare the precisions of a model: speed, memory, error and losslessness of calibrated engines.

    python benchmarks/precisions.py engines/*-fp32 engines/*-int8 engines/*-int4 \
        --prompts mt_bench.jsonl --out benchmarks/results/precisions.json

- Speeds: AR with one row, and the tree or trees by state expected to be fastest. All engines answer
  the same prompts alternately.
- Memory: peak of a process that opens the engine and answers.
- Error: perplexity and KL of every engine on the answers that the float32 engine among them writes
  to the same prompts. Without such an engine, they come from each engine's calibration.
- Verify: trees compared with AR on the same engine, with its own and a random adapter. In mode
  "exact", where nothing may differ, these are the trees expected to be fastest; in mode "tree",
  BiTA's triangle with its branches.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peer_report import describe_machine
from tree_choice import Calibrated

from bita.calibration.memory import measure_memory
from bita.calibration.quality import Scored, measure_quality
from bita.calibration.report import Quality, read_quality
from bita.calibration.turns import decode_in_turns, together
from bita.calibration.verify import Comparison, verify
from bita.cli.shared.progress import progress_bars
from bita.data.prompts import evenly, read_questions
from bita.errors import BitaError
from bita.runtime.session import Session
from bita.tree import Tree


def speeds(engines: Mapping[str, Calibrated], args: argparse.Namespace) -> dict[str, Any]:
    """Time AR and the best tree of every engine, interleaved."""
    sessions: dict[str, tuple[Session, Session]] = {
        name: (engine.using(Tree.root_only()), engine.using(engine.best()))
        for name, engine in engines.items()
    }
    questions = evenly(read_questions(args.prompts), args.timed)
    session = next(iter(sessions.values()))[0]
    with progress_bars() as show:
        timed = decode_in_turns(
            [session for pair in sessions.values() for session in pair],
            [session.as_prompt(question.messages) for question in questions],
            args.max_new_tokens,
            lambda done, total: show("speed", done, total),
        )
    report = {}
    for number, (name, (_, drafting)) in enumerate(sessions.items()):
        plain, tree = (together(runs) for runs in timed[2 * number : 2 * number + 2])
        report[name] = {
            "ar_tokens_per_second": round(plain.tokens_per_second, 2),
            "tree": str(drafting.tree),
            "tree_tokens_per_second": round(tree.tokens_per_second, 2),
            "tokens_per_step": round(tree.tokens_per_step, 4),
            "chosen": str(engines[name].session.tree),
        }
    return report


def answers_to_judge(
    engines: Mapping[str, Calibrated], args: argparse.Namespace
) -> tuple[Calibrated, list[Scored]] | None:
    """Answer the timed prompts with the first float32 engine; None without such an engine."""
    exact = [e for e in engines.values() if e.session.engine.manifest.precision == "fp32"]
    if not exact or not args.timed:
        return None
    session = exact[0].using(Tree.root_only())
    texts = []
    with progress_bars() as show:
        questions = evenly(read_questions(args.prompts), args.timed)
        for done, question in enumerate(questions, 1):
            prompt_ids = session.encode(session.as_prompt(question.messages))
            answer = session.generate(prompt_ids, args.max_new_tokens).token_ids
            texts.append(Scored((*prompt_ids, *answer), len(prompt_ids)))
            show("answers to judge by", done, len(questions))
    return exact[0], texts


def error_of(
    engine: Calibrated, judged_by: tuple[Calibrated, list[Scored]] | None
) -> Quality | None:
    """Measure the error of an engine, or read it from its calibration."""
    if judged_by is None:
        return read_quality(engine.session.engine)
    reference, texts = judged_by
    with progress_bars() as show:
        return measure_quality(
            reference.session.engine,
            engine.session.engine,
            texts,
            lambda done, total: show("error", done, total),
        )


def verify_trees(engine: Calibrated, args: argparse.Namespace) -> dict[str, Any]:
    """Count identical answers by mode and adapter."""
    report = {}
    for mode, tree, count in (
        ("exact", engine.best(), args.verified),
        ("tree", Tree.triangle(), args.branched),
    ):
        questions = evenly(read_questions(args.prompts), count)
        with progress_bars() as show:
            done = 0

            def on_prompt(
                count: int, mode: str = mode, total: int = 3 * len(questions), show: Any = show
            ) -> None:
                nonlocal done
                done += count
                show(f"verify, {mode}", done, total)

            comparisons = verify(
                engine.session.using(tree=tree, mode=mode),
                [engine.session.as_prompt(question.messages) for question in questions],
                args.max_new_tokens,
                on_prompt,
            )
        report[mode] = {"tree": str(tree), **{c.name: _counts(c) for c in comparisons}}
    return report


def _counts(comparison: Comparison) -> dict[str, Any]:
    return {
        "identical": comparison.num_identical,
        "prompts": comparison.num_prompts,
        "tokens": comparison.num_tokens,
        "forbidden": len(comparison.forbidden),
        "margins": [round(item.margin or 0.0, 4) for item in comparison.divergences],
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all engines; rewrite the file after each one."""
    report = {**describe_machine(args.threads or 1), "prompts": args.prompts.name}
    report |= {"timed": args.timed, "verified": args.verified, "branched": args.branched}
    report |= {"max_new_tokens": args.max_new_tokens, "engines": {}}
    engines = {path.name: Calibrated.open(path, args.threads) for path in args.engines}
    rows: dict[str, Any] = report["engines"]
    if args.timed:
        rows.update(speeds(engines, args))
    judged_by = answers_to_judge(engines, args)
    for path in args.engines:
        engine = engines[path.name]
        row = rows.setdefault(path.name, {})
        quality = error_of(engine, judged_by)
        row["megabytes"] = round(engine.session.engine.num_bytes / 1e6, 1)
        memory = measure_memory(path, args.threads)
        row["peak_megabytes"] = round(memory.decoding.host / 1e6, 1)
        if quality:
            row |= {"perplexity": quality.perplexity, "kl": quality.kl}
            row |= {"same_greedy": quality.same_greedy, "judged_tokens": quality.num_tokens}
        if args.verified:
            row["verify"] = verify_trees(engine, args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{path.name}: {json.dumps(row)}")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a line per engine, write the JSON; return 1 if mode "exact" differed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engines", type=Path, nargs="+")
    parser.add_argument("--prompts", type=Path, required=True, help="file of MT-Bench questions")
    parser.add_argument("--timed", type=int, default=24, help="timed prompts; 0: none")
    parser.add_argument("--verified", type=int, default=80, help="verified prompts; 0: none")
    parser.add_argument("--branched", type=int, default=16, help="prompts verified in mode tree")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=0, help="0: one per physical core")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        report = measure(args)
    except BitaError as error:
        print(f"precisions: {error}", file=sys.stderr)
        return 1
    exact = [row["verify"]["exact"] for row in report["engines"].values() if "verify" in row]
    failed = [kind for row in exact for kind in row.values() if isinstance(kind, dict)]
    return int(any(kind["forbidden"] for kind in failed))


if __name__ == "__main__":
    sys.exit(main())
