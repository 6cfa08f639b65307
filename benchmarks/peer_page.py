"""Puts the table and the chart of results/peers.json into the README.

    python benchmarks/peer_page.py [--check]

--check: change nothing, and exit with 1 where the README's table is not that of the JSON.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from peer_report import table

ROOT = Path(__file__).resolve().parents[1]
README, RESULT = ROOT / "README.md", ROOT / "benchmarks" / "results" / "peers.json"
CHART = ROOT / "docs" / "images" / "peers.svg"
BEGIN, END = "<!-- benchmarks/peer_page.py -->\n", "<!-- end -->"
OURS, THEIRS, LINE = "#1f5f8b", "#b9c6d2", "#33414d"


def page_part(report: dict[str, Any]) -> str:
    """What stands between the marks of the README."""
    processor = report["cpu"].replace("(R)", "")
    about = (
        f"{report['model'].split('.')[0]}, {report['cpu_count']} cores of {processor} "
        f"({kind_of(report)}), {report['threads']} threads, "
        f"greedy to EOS or {report['new_tokens']} tokens, {report['num_prompts']} prompts of "
        f"`{report['prompts']}`, all engines taking turns"
    )
    cells = table(report)
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    lines.insert(1, "|---" * len(cells[0]) + "|")
    source = "([JSON](benchmarks/results/peers.json), `make bench`)"
    return f"{about} {source}:\n\n" + "\n".join(lines) + "\n\n"


def kind_of(report: dict[str, Any]) -> str:
    """The flag that matters most for the speed of small types."""
    flags = {"avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "avx2": "AVX2", "i8mm": "i8mm"}
    return next((name for flag, name in flags.items() if flag in report["cpu_flags"]), "no VNNI")


def draw(report: dict[str, Any], out: Path) -> None:
    """Bars of tokens per second with their 95 % intervals."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bita"})
    rows = sorted(report["engines"].items(), key=lambda row: row[1]["tokens_per_second"]["mean"])
    figure = Figure(figsize=(9, 0.36 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    for place, (name, row) in enumerate(rows):
        speed = row["tokens_per_second"]
        color = OURS if name.startswith("bita") else THEIRS
        axes.barh(place, speed["mean"], color=color, height=0.72)
        axes.plot([speed["low"], speed["high"]], [place, place], color=LINE, lw=1.5)
        axes.text(speed["high"] + 3, place, f"{speed['mean']:.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9)
    axes.set_xlabel("tokens per second, with the 95 % interval", fontsize=9)
    axes.margins(y=0.01)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    report = json.loads(RESULT.read_text(encoding="utf-8"))
    text = README.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    wanted = head + BEGIN + page_part(report) + END + tail
    if args.check:
        if wanted != text:
            print("the README's table is not that of the JSON: python benchmarks/peer_page.py")
        return int(wanted != text)
    README.write_text(wanted, encoding="utf-8")
    draw(report, CHART)
    return 0


if __name__ == "__main__":
    sys.exit(main())
