"""Print the table of a sweep: each run's gain over the first one, with intervals.

    python benchmarks/tuning_sweep_page.py benchmarks/results/tuning_sweep_few_rows.jsonl

All runs are judged on the same texts, so differences are taken text by text. Intervals cover 95 %
of resampled texts. They show how certain a difference between these two runs is; the table also
shows how much runs differ that differ only in the seed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bita.tensors import Float64Array

RESAMPLED = 2000
ALL, NEW = slice(0, 2), slice(2, 4)  # (places, right ones) in a text's counts


def share(texts: Float64Array, kind: slice) -> float:
    """Return the percentage of places whose first draft is right, given counts [n, 4]."""
    places, right = texts[:, kind].sum(0)
    return 100 * float(right / max(places, 1))


def difference(texts: Float64Array, first: Float64Array, kind: slice) -> tuple[float, float, float]:
    """Return the gain over the first run in percentage points, and its interval."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLED):
        chosen = rng.integers(len(texts), size=len(texts))
        drawn.append(share(texts[chosen], kind) - share(first[chosen], kind))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return share(texts, kind) - share(first, kind), float(low), float(high)


def rows(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return a row of a Markdown table for each run."""
    first = np.array(runs[0]["texts"], np.float64)
    lines = []
    for run in runs:
        texts = np.array(run["texts"], np.float64)
        cells = [run["name"], f"{run['rows']:,}"]
        for kind in (ALL, NEW):
            gain, low, high = difference(texts, first, kind)
            cell = f"{share(texts, kind):.1f}"
            cells.append(
                cell if run is runs[0] else f"{cell}, {gain:+.1f} ({low:+.1f} to {high:+.1f})"
            )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path)
    args = parser.parse_args()
    runs = [json.loads(line) for line in args.sweep.read_text(encoding="utf-8").splitlines()]
    print("| run | mask rows | first draft right, % | where the text has no match |")
    print("|---|---|---|---|")
    print("\n".join(rows(runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
