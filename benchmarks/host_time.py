"""Measure the time per decode step outside the backend: drafting, accepting, committing, text.

    python benchmarks/host_time.py ENGINE [ENGINE ...] --out benchmarks/results/host_time.json

The time of a step is everything between the first and the last token of an answer, divided by the
steps, including the stop rule and the text. The backend's part is the time of its run call.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from peer_report import describe_machine

from bita.data.prompts import read_prompts
from bita.runtime.session import Session
from bita.tree import Tree

TREES = {"ar": Tree.root_only(), "chain": Tree.chain(3), "triangle": Tree.triangle()}


def measure(session: Session, num_prompts: int, num_tokens: int) -> dict[str, Any]:
    """Return medians over whole answers, the first of which is a warm-up."""
    steps: list[tuple[float, float]] = []
    for prompt in read_prompts(limit=num_prompts + 1):
        session.reset_stats()
        stream = session.stream(prompt, num_tokens, stop=["\x00"], ignore_eos=True)
        next(stream)
        began = time.perf_counter()
        for _ in stream:
            pass
        whole_ms = 1000 * (time.perf_counter() - began)
        stats = session.stats
        steps.append((whole_ms / stats.num_steps, sum(stats.backend_ms) / stats.num_steps))
    whole, backend = (statistics.median(side) for side in zip(*steps[1:], strict=True))
    return {
        "step_ms": round(whole, 4),
        "backend_ms": round(backend, 4),
        "host_ms": round(whole - backend, 4),
        "host_share": round(1 - backend / whole, 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--num-prompts", type=int, default=6)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = []
    for path in args.engines:
        loaded = Session.open(path, num_threads=args.threads)
        for name, tree in {**TREES, "own": loaded.tree}.items():
            figures = measure(loaded.using(tree=tree), args.num_prompts, args.new_tokens)
            described = {"engine": path.name, "trees": name, "tree": str(tree)}
            results.append({**described, **figures})
            print(json.dumps(results[-1]), flush=True)
    if args.out:
        report = {**describe_machine(args.threads), "results": results}
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
