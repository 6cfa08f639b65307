"""calibration.png: what steps cost, what trees give, and the point that was chosen."""

import io

from bita.calibration.choose_tree import Choice
from bita.calibration.latency import Latency

PICTURE_FILE = "calibration.png"
INK, MUTED, MARK = "#1f3b57", "#8aa4bd", "#c8452f"


def draw(latency: Latency, choice: Choice) -> bytes | None:
    """A PNG of T(q), tokens per step and speed against rows; None without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(13, 4), layout="constrained")
    times, tokens, speeds = figure.subplots(1, 3)
    shades = [INK, "#3f6d99", "#6a92ba", "#a9bfd3"]
    for index, length in enumerate(latency.cache_lengths):
        color = shades[index % len(shades)]
        half = [spread / 2 for spread in latency.spread[index]]
        times.errorbar(
            latency.rows, latency.median[index], half, fmt="o", ms=3, lw=1, color=color, alpha=0.6
        )
        times.plot(
            latency.rows, latency.fitted[index], color=color, label=f"{length} tokens cached"
        )
    times.set(title="Time of a step", xlabel="rows", ylabel="ms", xscale="log", yscale="log")
    times.legend(frameon=False)
    rows = [candidate.tree.num_rows for candidate in choice.by_rows]
    chosen = choice.chosen
    tokens.plot(
        rows, [c.expected_tokens for c in choice.by_rows], color=INK, label="best single tree"
    )
    speeds.plot(
        rows, [c.expected_speed for c in choice.by_rows], color=INK, label="best single tree"
    )
    speeds.axhline(choice.ar.expected_speed, color=MUTED, ls="--", label="AR, expected")
    if choice.ar.measured_speed:
        speeds.axhline(choice.ar.measured_speed, color=MARK, lw=1, ls="--", label="AR, measured")
    x = chosen.mean_rows
    tokens.plot(x, chosen.expected_tokens, "o", mfc="none", color=MARK, label="chosen, expected")
    speeds.plot(x, chosen.expected_speed, "o", mfc="none", color=MARK, label="chosen, expected")
    if chosen.measured_speed:
        tokens.plot(x, chosen.measured_tokens, "o", color=MARK, label="chosen, measured")
        speeds.plot(x, chosen.measured_speed, "o", color=MARK, label="chosen, measured")
    tokens.set(title="Tokens per step", ylim=(0.9, None))
    speeds.set(title="Speed", ylabel="tokens per second", ylim=(0, 1.05 * speeds.get_ylim()[1]))
    for axes in (tokens, speeds):
        axes.set(xlabel="rows of a step, on average", xlim=(0, None))
        axes.legend(frameon=False)
    for axes in (times, tokens, speeds):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
