"""Measure how decoding scales with the model, with random Llamas of 0.1 to 3 billion parameters.

    python benchmarks/growth.py --drafts engines/smollm2-135m-instruct-int4 \
        --out benchmarks/results/growth.json

For each shape, a GGUF file is written (linear layers in Q4_0, the embedding table in Q8_0), an int4
engine is built without calibration, and a step of each number of rows is timed after 127 tokens.
Tokens per second with trees are modelled: the drafts measured on the text of a calibrated engine
(--drafts) are replayed with the trees by state that are best for the shape's own T(q), and each
step costs T(q) plus the time of the host. So they show what drafts of that quality would give, not
what these random models do. Files and engines are removed after each shape. A run that was stopped
continues.
"""

import argparse
import contextlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from export_memory import CONFIG
from gguf import GGMLQuantizationType as Kind
from kept_blocks import step_weight_bytes
from large_model import write_model
from large_shape import run_measured
from peer_report import describe_machine
from peers import Journal, find_default_gguf, say
from rows import Subject, copy_gigabytes_per_second, summary, time_rows

from bita.calibration.acceptance import Acceptance
from bita.calibration.memory import measure_memory
from bita.calibration.replay import replay
from bita.calibration.table_search import best_table
from bita.engine import open_engine, read_calibration
from bita.errors import BitaError, EngineError
from bita.runtime.session import Session
from bita.tree import Tree
from bita.tree_table import TreeTable

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "docs" / "images" / "growth.svg"
LENGTH, ROWS = 127, (1, 2, 3, 4, 6, 8, 12, 16)
HOST_MS = {"plain": 0.035, "trees": 0.085}  # of a step, in addition to the backend's part
KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size"),
)
# by billions of parameters: the model with the same shape, and the values of KEYS
SHAPES = {
    "0.1": ("SmolLM2 135M", (576, 1536, 30, 9, 3, 64, 49152)),
    "0.5": ("Qwen2.5 0.5B", (896, 4864, 24, 14, 2, 64, 151936)),
    "1.2": ("Llama 3.2 1B", (2048, 8192, 16, 32, 8, 64, 128256)),
    "3.2": ("Llama 3.2 3B", (3072, 8192, 28, 24, 8, 128, 128256)),
}


def measure_shape(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Write, build, time and remove one shape."""
    of, sizes = SHAPES[name]
    gguf, engine = args.work_dir / f"{name}.gguf", args.work_dir / name
    try:
        if not gguf.exists():
            say(f"{name}: writing {gguf}")
            config = {**CONFIG, **dict(zip(KEYS, sizes, strict=True))}
            write_model(gguf.with_suffix(".partial"), Kind.Q4_0, args.gguf, config)
            gguf.with_suffix(".partial").rename(gguf)
        command = [sys.executable, "-m", "bita", "engine", str(gguf), "--out", str(engine)]
        built = run_measured([*command, "--uncalibrated", "--adapter", "none"])
        say(f"{name}: built in {built['seconds']} s")
        memory = measure_memory(engine, args.threads, Tree.root_only())
        copy_speed = copy_gigabytes_per_second(args.threads)
        session = Session.open(engine, tree=Tree.root_only(), num_threads=args.threads)
        times = time_rows([Subject(name, session, None)], LENGTH, ROWS, args.bursts)[name]
        step_bytes = step_weight_bytes(open_engine(engine))
        return {
            "shape_of": of,
            **dict(zip(KEYS, sizes, strict=True)),
            "file_mb": round(gguf.stat().st_size / 1e6, 1),
            "engine_mb": round(sum(f.stat().st_size for f in engine.iterdir()) / 1e6, 1),
            "build_seconds": built["seconds"],
            "build_peak_mb": built["peak_mb"],
            "session_mb": round(memory.decoding.host / 2**20),
            "copy_gb_per_s": round(copy_speed, 2),
            "step_weight_bytes": step_bytes,
            "step_ms": {str(rows): summary(each) for rows, each in times.items()},
        }
    finally:
        gguf.unlink(missing_ok=True)
        shutil.rmtree(engine, ignore_errors=True)


def model_speed(found: dict[str, Any], acceptance: Acceptance) -> dict[str, float]:
    """Compute tokens per second plainly, and with the best trees by state for this T(q)."""
    medians = [found["step_ms"][str(rows)]["p50_ms"] for rows in ROWS]
    curve = np.interp(np.arange(1, ROWS[-1] + 1), ROWS, np.maximum.accumulate(medians))
    times = curve + HOST_MS["trees"]
    times[0] = curve[0] + HOST_MS["plain"]
    num_masks = len(acceptance.table())
    found_trees = best_table(acceptance, times.tolist(), num_masks, "tree", Tree.root_only())
    table = TreeTable.of(found_trees)
    steps = [table.trees[v.number].num_rows for text in replay(acceptance, table) for v in text]
    plain = 1000 / float(times[0])
    trees = 1000 * acceptance.num_positions / sum(float(times[rows - 1]) for rows in steps)
    weights = found["step_weight_bytes"] / medians[0] / 1e6
    return {
        "weights_gb_per_s": round(weights, 2),
        "share_of_copy": round(weights / found["copy_gb_per_s"], 3),
        "plain_tokens_per_second": round(plain, 2),
        "trees_tokens_per_second": round(trees, 2),
        "times": round(trees / plain, 3),
        "tokens_per_step": round(acceptance.num_positions / len(steps), 3),
        "rows_per_step": round(float(np.mean(steps)), 2),
    }


def drafts_of(path: Path) -> Acceptance:
    """Read the drafts that an engine's calibration measured."""
    report = read_calibration(open_engine(path))
    if "acceptance" not in report:
        raise EngineError(f"engine {path} is not calibrated; run: bita calibrate tree {path}")
    return Acceptance.from_json(report["acceptance"])


def table_of(report: dict[str, Any]) -> list[list[str]]:
    """Return the cells of the report's table, the heads first."""
    heads = ["billions", "shape of", "file MB", "build s", "session MB", "T(1) ms"]
    heads += ["T(2)", "T(4)", "T(8)", "of a copy", "plain tok/s", "trees tok/s", "times"]
    cells = [heads]
    for name, row in report["shapes"].items():
        medians = {rows: row["step_ms"][str(rows)]["p50_ms"] for rows in ROWS}
        ratios = [f"{medians[rows] / medians[1]:.2f}" for rows in (2, 4, 8)]
        cells.append(
            [
                *(name, row["shape_of"], f"{row['file_mb']:.0f}", f"{row['build_seconds']:.0f}"),
                *(f"{row['session_mb']}", f"{medians[1]:.2f}", *ratios),
                f"{100 * row['share_of_copy']:.0f} %",
                f"{row['plain_tokens_per_second']:.1f}",
                f"{row['trees_tokens_per_second']:.1f}",
                f"{row['times']:.2f}",
            ]
        )
    return cells


def draw(report: dict[str, Any], out: Path) -> None:
    """Draw T(q) / T(1) of each shape, and tokens per second plainly and with trees."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bita"})
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = ("#9ecae1", "#6baed6", "#3182bd", "#08519c")
    for color, (name, row) in zip(colors, report["shapes"].items(), strict=True):
        medians = [row["step_ms"][str(rows)]["p50_ms"] for rows in ROWS]
        ratios = [ms / medians[0] for ms in medians]
        left.plot(ROWS, ratios, marker="o", ms=3, color=color, label=f"{name} billion")
    left.set_xlabel("rows of a step", fontsize=9)
    left.set_ylabel("time relative to one row", fontsize=9)
    left.set_ylim(bottom=0)
    left.legend(fontsize=8, frameon=False)
    for place, row in enumerate(report["shapes"].values()):
        pair = row["plain_tokens_per_second"], row["trees_tokens_per_second"]
        for shift, speed, color in zip((-0.2, 0.2), pair, ("#b9c6d2", "#1f5f8b"), strict=True):
            right.bar(place + shift, speed, width=0.38, color=color)
            right.text(place + shift, speed * 1.06, f"{speed:.0f}", ha="center", fontsize=8)
    right.set_yscale("log")
    right.set_ylim(10, 2 * max(r["trees_tokens_per_second"] for r in report["shapes"].values()))
    right.set_xticks(range(len(report["shapes"])), list(report["shapes"]))
    right.set_xlabel("billions of parameters; grey: plain, blue: trees, modelled", fontsize=9)
    right.set_ylabel("tokens per second", fontsize=9)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the missing shapes, and model the speed with trees."""
    args.work_dir.mkdir(parents=True, exist_ok=True)
    acceptance = drafts_of(args.drafts)
    settings = {"shapes": SHAPES, "threads": args.threads, "bursts": args.bursts}
    journal = Journal(args.work_dir / "journal.jsonl", settings)
    shapes = {}
    for name in args.shapes or SHAPES:
        found = journal.get("shape", name) or journal.add("shape", name, measure_shape(name, args))
        shapes[name] = {**found, **model_speed(found, acceptance)}
    about = {"length": LENGTH, "drafts_of": args.drafts.name, "host_ms": HOST_MS}
    return {**describe_machine(args.threads), **about, "shapes": shapes}


def print_table(cells: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--drafts", type=Path, required=True, help="a calibrated engine")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="default: all")
    parser.add_argument(
        "--gguf", type=Path, default=find_default_gguf(), help="GGUF file with the tokenizer to use"
    )
    parser.add_argument("--work-dir", type=Path, default=Path(".cache/growth"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bursts", type=int, default=4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--chart", type=Path, default=CHART)
    args = parser.parse_args()
    try:
        report = compare(args)
    except BitaError as error:
        print(f"growth: {error}", file=sys.stderr)
        return 1
    print_table(table_of(report))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        with contextlib.suppress(ImportError):  # matplotlib is a package for developers
            draw(report, args.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main())
