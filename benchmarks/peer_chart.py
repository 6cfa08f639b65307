"""The chart of results/peers.json: tokens per second of each engine, plain and with drafts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

OURS, OURS_PALE, THEIRS, THEIRS_PALE, INK = "#1f5f8b", "#8fb3cc", "#7d8b97", "#c5ced6", "#33414d"


def draw(report: Mapping[str, Any], out: Path) -> None:
    """Draw a bar of tokens per second for each engine, with its ratio to plain decoding."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bita"})
    rows = sorted(report["engines"].items(), key=lambda row: row[1]["tokens_per_second"]["mean"])
    figure = Figure(figsize=(9, 0.34 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    for place, (name, row) in enumerate(rows):
        speed, has_drafts = row["tokens_per_second"], row["plain"] != name
        dark, pale = (OURS, OURS_PALE) if name.startswith("bita") else (THEIRS, THEIRS_PALE)
        axes.barh(place, speed["mean"], color=dark if has_drafts else pale, height=0.72)
        axes.plot([speed["low"], speed["high"]], [place, place], color=INK, lw=1.2)
        label = f"{speed['mean']:.0f}"
        if has_drafts:
            same = f"{row['same_text']} of {row['n']} texts the same"
            label += f" ({row['times_plain']['mean']:.2f}× plain, {same})"
        axes.text(speed["high"] + 6, place, label, va="center", fontsize=9, color=INK)
    names = [name.replace(", AR", "").replace("trees", "drafts") for name, _ in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    axes.set_xlabel("tokens per second, with the 95 % interval; dark bars use drafts", fontsize=9)
    axes.set_xlim(0, 1.7 * rows[-1][1]["tokens_per_second"]["high"])
    axes.set_xticks(range(0, int(rows[-1][1]["tokens_per_second"]["high"]) + 1, 100))
    axes.margins(y=0.01)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
