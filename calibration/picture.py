"""Draw calibration.png: the cost of steps, the yield of trees, and the chosen point."""

import io
from typing import Any

from bita.calibration.choose_tree import Choice
from bita.calibration.latency import Latency

PICTURE_FILE = "calibration.png"
INK, MUTED, MARK = "#1f3b57", "#8aa4bd", "#c8452f"
SHADES = (INK, "#3f6d99", "#6a92ba", "#a9bfd3")  # for the cache lengths, in turn


def draw(latency: Latency, choice: Choice) -> bytes | None:
    """Return a PNG of T(q), tokens per step and speed by rows; None without matplotlib."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    buffer = io.BytesIO()
    with matplotlib.rc_context():
        # ignore a `matplotlibrc` in the working directory, which could run programs
        matplotlib.rcdefaults()
        figure = Figure(figsize=(13, 4), layout="constrained")
        _draw_axes(figure, latency, choice)
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _draw_axes(figure: Any, latency: Latency, choice: Choice) -> None:
    times, tokens, speeds = figure.subplots(1, 3)
    _draw_times(times, latency)
    _draw_tokens(tokens, choice)
    _draw_speeds(speeds, choice)
    for axes in (tokens, speeds):
        axes.set(xlabel="rows of a step, on average", xlim=(0, None))
        axes.legend(frameon=False)
    for axes in (times, tokens, speeds):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)


def _draw_times(axes: Any, latency: Latency) -> None:
    """Draw T(q) in milliseconds for each cache length: measured with its spread, and fitted."""
    for index, length in enumerate(latency.cache_lengths):
        color = SHADES[index % len(SHADES)]
        half = [spread / 2 for spread in latency.spread[index]]
        axes.errorbar(
            latency.rows, latency.median[index], half, fmt="o", ms=3, lw=1, color=color, alpha=0.6
        )
        axes.plot(latency.rows, latency.fitted[index], color=color, label=f"{length} tokens cached")
    axes.set(title="Time of a step", xlabel="rows", ylabel="ms", xscale="log", yscale="log")
    axes.legend(frameon=False)


def _draw_tokens(axes: Any, choice: Choice) -> None:
    """Draw the tokens per step of the best tree with each number of rows, and of the choice."""
    rows = [candidate.tree.num_rows for candidate in choice.by_rows]
    expected = [candidate.expected_tokens for candidate in choice.by_rows]
    axes.plot(rows, expected, color=INK, label="best single tree")
    chosen, x = choice.chosen, choice.chosen.mean_rows
    axes.plot(x, chosen.expected_tokens, "o", mfc="none", color=MARK, label="chosen, expected")
    if chosen.measured_speed:
        axes.plot(x, chosen.measured_tokens, "o", color=MARK, label="chosen, measured")
    axes.set(title="Tokens per step", ylim=(0.9, None))


def _draw_speeds(axes: Any, choice: Choice) -> None:
    """Draw the tokens per second of the same trees, and of plain decoding."""
    rows = [candidate.tree.num_rows for candidate in choice.by_rows]
    expected = [candidate.expected_speed for candidate in choice.by_rows]
    axes.plot(rows, expected, color=INK, label="best single tree")
    axes.axhline(choice.ar.expected_speed, color=MUTED, ls="--", label="AR, expected")
    if choice.ar.measured_speed:
        axes.axhline(choice.ar.measured_speed, color=MARK, lw=1, ls="--", label="AR, measured")
    chosen, x = choice.chosen, choice.chosen.mean_rows
    axes.plot(x, chosen.expected_speed, "o", mfc="none", color=MARK, label="chosen, expected")
    if chosen.measured_speed:
        axes.plot(x, chosen.measured_speed, "o", color=MARK, label="chosen, measured")
    axes.set(title="Speed", ylabel="tokens per second", ylim=(0, 1.05 * axes.get_ylim()[1]))
