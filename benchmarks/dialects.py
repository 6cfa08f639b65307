"""Check on the CPU that graphs for GPUs give the same text as the graph for CPUs.

    python benchmarks/dialects.py smollm2-135m-instruct \\
        --adapter adapters/smollm2-135m-instruct.safetensors --prompts mt_bench.jsonl \\
        --out benchmarks/results/dialects.json

Each dialect with float32 decodes with the same tree and is compared token by token with the dialect
ort. The largest difference of the logits of a tree's rows after the same text is reported too.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bita.adapter import Adapter
from bita.calibration.latency import describe_device
from bita.calibration.turns import Timed, decode_in_turns, together
from bita.cli.shared.progress import progress_bars
from bita.cli.shared.trees import read_tree
from bita.data.prompts import evenly, read_questions
from bita.dialect_spec import DIALECTS
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
from bita.runtime.backends.layout import prefill_layout, tree_layout
from bita.runtime.session import Session
from bita.tree import Tree

READ = 200  # tokens of the text after which logits are compared


def build(args: argparse.Namespace, folder: Path) -> dict[str, Session]:
    checkpoint, adapter = open_checkpoint(args.model), Adapter.load(args.adapter)
    tree = read_tree(args.tree, adapter.num_masks)
    sessions = {}
    for dialect, spec in DIALECTS.items():
        if "fp32" not in spec.precisions:
            continue
        options = BuildOptions(
            "fp32", capacity=args.capacity, tree=tree, dialect=dialect, backend=spec.backends[0]
        )
        build_engine(check_build(checkpoint, adapter, folder / dialect, options))
        sessions[dialect] = Session.open(
            folder / dialect, backend="ort-cpu", num_threads=args.threads
        )
    return sessions


def logits_after(session: Session, token_ids: Sequence[int]) -> np.ndarray:
    """Return the logits [R, V] of a tree's rows after a text; the nodes hold its last tokens."""
    backend, adapter, tree = session.backend, session.adapter, session.tree
    if not isinstance(tree, Tree):
        raise SystemExit(
            "the engine has a table of trees; build one with a single tree: --tree chain"
        )
    backend.cache.start(adapter)
    for start in range(0, len(token_ids), 64):
        piece = token_ids[start : start + 64]
        step = backend.bind(prefill_layout(len(piece), 0, 2), adapter)
        step.token_ids[0, : len(piece)] = piece
        step.run()
        backend.cache.length += len(piece)
    step = backend.bind(tree_layout(tree, 2), adapter, with_logits=True)
    step.token_ids[0, : tree.num_nodes] = token_ids[-tree.num_nodes :]
    step.run()
    assert step.logits is not None
    return step.logits.copy()


def compare(sessions: dict[str, Session], timed: list[list[Timed]]) -> dict[str, Any]:
    expected = [answer.token_ids for answer in timed[0]]
    text = [token for ids in expected for token in ids][:READ]
    reference = logits_after(sessions["ort"], text)
    report = {}
    for (dialect, session), answers in zip(sessions.items(), timed, strict=True):
        total = together(answers)
        same = [a.token_ids == e for a, e in zip(answers, expected, strict=True)]
        difference = np.abs(logits_after(session, text) - reference).max()
        report[dialect] = {
            "identical": sum(same),
            "prompts": len(same),
            "tokens": sum(map(len, expected)),
            "largest_logit_difference": float(difference),
            "tokens_per_second": round(total.tokens_per_second, 2),
            "tokens_per_step": round(total.tokens_per_step, 4),
        }
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="questions in MT-Bench format")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--tree", default="chain")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--capacity", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    questions = evenly(read_questions(args.prompts), args.limit)
    with tempfile.TemporaryDirectory() as folder, progress_bars() as show:
        sessions = build(args, Path(folder))
        prompts = [question.messages for question in questions]
        timed = decode_in_turns(
            list(sessions.values()),
            prompts,
            args.max_new_tokens,
            lambda done, total: show("decoding", done, total),
        )
        report = compare(sessions, timed)
    options = {"model": args.model, "tree": args.tree, "max_new_tokens": args.max_new_tokens}
    device = describe_device(args.threads)
    text = json.dumps({"device": device, "options": options, "dialects": report}, indent=1)
    args.out.write_text(text + "\n", encoding="utf-8")
    for dialect, figures in report.items():
        print(dialect, figures)
    return int(any(figures["identical"] < figures["prompts"] for figures in report.values()))


if __name__ == "__main__":
    sys.exit(main())
