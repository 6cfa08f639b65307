"""Write the profile as a single HTML page of charts that works offline (plotly is embedded)."""

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io

from bita.calibration.profiling.figures import TREES, WAYS, EngineReport
from bita.calibration.profiling.summary import summary_of
from bita.files import write_whole

Reports = Sequence[EngineReport]
COLORS = ("#1f5fa8", "#d1662b", "#3a8f5c", "#8a4fa0", "#7a7a7a", "#b8a21f")
DASHES = {"p50": "solid", "p90": "dash", "p99": "dot"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1080px; padding: 0 1em;
  color: #222; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin: 2em 0 .3em }
table { border-collapse: collapse; margin: .5em 0 } td, th { padding: .2em .9em .2em 0;
  text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
p.note { color: #555; margin: .2em 0 }
"""


def write_page(reports: Reports, names: Sequence[str], path: Path) -> None:
    """Write the page of one engine, or of several side by side, atomically."""
    parts = [*_parts(reports, names)]
    title = " and ".join(names)
    text = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<meta name=viewport content='width=device-width'><style>{STYLE}</style>"
        f"<h1>Profile of {html.escape(title)}</h1>{''.join(parts)}</html>\n"
    )
    write_whole(path, text)


def _parts(reports: Reports, names: Sequence[str]) -> Iterator[str]:
    yield _summary(reports, names)
    figures = (
        ("Step latency by rows", _steps(reports, names), _steps_note(reports)),
        ("Prefill", _prefill(reports, names), "Median of runs that compute the whole prompt."),
        (
            "Speed over time",
            _over_time(reports, names),
            "Each mark is an answer, in the order of generation.",
        ),
        ("Time to first token", _first(reports, names), "Each mark is an answer's prompt."),
        ("Tokens per step by category", _categories(reports, names), "Plain decoding has 1."),
        ("Host and backend", _host(reports, names), "Mean ms per decode step."),
        (
            "Operators",
            _operators(reports, names),
            "Recording every operator takes time too, so compare shares rather than times.",
        ),
        ("Device", _sensors(reports), "Sampled every half second during the whole profile."),
    )
    script: bool | str = True
    for title, figure, note in figures:
        if figure is None:
            continue
        yield f"<h2>{title}</h2><p class=note>{html.escape(note)}</p>"
        yield plotly.io.to_html(
            figure, full_html=False, include_plotlyjs=script, config={"displaylogo": False}
        )
        script = False


def _summary(reports: Reports, names: Sequence[str]) -> str:
    columns = [summary_of(report) for report in reports]
    head = "".join(f"<th class=number>{html.escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr><th>{html.escape(label)}</th>"
        + "".join(f"<td class=number>{html.escape(column[label])}</td>" for column in columns)
        + "</tr>"
        for label in columns[0]
    )
    about = ", ".join(f"{key} {value}" for key, value in reports[0].facts.device.items())
    return f"<p class=note>{html.escape(about)}</p><table><tr><th></th>{head}</tr>{body}</table>"


def _figure(x: str, y: str, **layout: Any) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="plotly_white",
        height=380,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        xaxis_title=x,
        yaxis_title=y,
        **layout,
    )
    return figure


def _label(name: str, text: str, reports: Reports) -> str:
    return f"{name}: {text}" if len(reports) > 1 else text


def _steps(reports: Reports, names: Sequence[str]) -> go.Figure:
    figure = _figure("rows of the step", "ms", xaxis_type="log", yaxis_type="log")
    shown = ("p50", "p99") if len(reports) == 1 else ("p50",)
    color = 0
    for report, name in zip(reports, names, strict=True):
        latency = report.latency
        for place, length in enumerate(latency.cache_lengths):
            for percentile, dash in DASHES.items():
                figure.add_scatter(
                    x=latency.rows,
                    y=latency.by_percentile[percentile][place],
                    name=_label(name, f"{percentile} after {length} tokens", reports),
                    mode="lines+markers",
                    line={"color": COLORS[color % len(COLORS)], "dash": dash},
                    visible=True if percentile in shown else "legendonly",
                )
            color += 1
    ticks = reports[0].latency.rows
    figure.update_xaxes(tickvals=ticks, ticktext=[str(tick) for tick in ticks])
    return figure


def _steps_note(reports: Reports) -> str:
    runs = min(report.latency.runs for report in reports)
    return (
        f"Single steps, at least {runs} of each size; sizes are interleaved. "
        "Click an entry of the legend to show or hide a percentile."
    )


def _prefill(reports: Reports, names: Sequence[str]) -> go.Figure:
    figure = _figure("tokens of the prompt", "tokens/s", yaxis_rangemode="tozero")
    for number, (report, name) in enumerate(zip(reports, names, strict=True)):
        prefill = report.prefill
        figure.add_scatter(
            x=prefill.tokens,
            y=prefill.tokens_per_second,
            name=name,
            mode="lines+markers",
            line={"color": COLORS[number]},
            customdata=[*zip(*prefill.by_percentile.values(), strict=True)],
            hovertemplate="%{x} tokens: %{y:.0f} tokens/s, p50 / p90 / p99 %{customdata[0]:.1f} / "
            "%{customdata[1]:.1f} / %{customdata[2]:.1f} ms",
        )
    return figure


def _over_time(reports: Reports, names: Sequence[str]) -> go.Figure:
    figure = _figure("seconds", "tokens/s of the answer", yaxis_rangemode="tozero")
    for color, (name, report, way) in enumerate(_ways(reports, names)):
        answers = report.decode[way].answers
        figure.add_scatter(
            x=[answer.seconds for answer in answers],
            y=[answer.tokens_per_second for answer in answers],
            name=_label(name, way, reports),
            mode="lines+markers",
            line={"color": COLORS[color], "width": 1},
            text=[answer.category for answer in answers],
        )
    return figure


def _first(reports: Reports, names: Sequence[str]) -> go.Figure:
    figure = _figure("tokens of the prompt", "ms", yaxis_rangemode="tozero")
    for number, (report, name) in enumerate(zip(reports, names, strict=True)):
        answers = [a for way in WAYS for a in report.decode[way].answers]
        figure.add_scatter(
            x=[answer.prompt_tokens for answer in answers],
            y=[answer.first_token_ms for answer in answers],
            name=name,
            mode="markers",
            marker={"color": COLORS[number]},
        )
    return figure


def _categories(reports: Reports, names: Sequence[str]) -> go.Figure:
    figure = _figure("", "tokens per step", barmode="group")
    for number, (report, name) in enumerate(zip(reports, names, strict=True)):
        groups = report.decode[TREES].by_category
        figure.add_bar(
            x=[*groups],
            y=[group.tokens_per_step for group in groups.values()],
            name=name,
            marker_color=COLORS[number],
            customdata=[group.tokens_per_second for group in groups.values()],
            hovertemplate="%{x}: %{y:.3f} tokens per step, %{customdata:.0f} tokens/s",
        )
    return figure


def _host(reports: Reports, names: Sequence[str]) -> go.Figure:
    figure = _figure("ms", "", barmode="stack")
    ways = [*_ways(reports, names)]
    labels = [_label(name, way, reports) for name, _, way in ways]
    decodings = [report.decode[way] for _, report, way in ways]
    parts = {
        "backend": [decoding.backend_ms_per_step for decoding in decodings],
        "host": [decoding.host_ms_per_step for decoding in decodings],
    }
    for color, (part, milliseconds) in enumerate(parts.items()):
        figure.add_bar(
            y=labels,
            x=milliseconds,
            name=part,
            orientation="h",
            marker_color=COLORS[color],
        )
    figure.update_layout(height=140 + 40 * len(labels))
    return figure


def _operators(reports: Reports, names: Sequence[str]) -> go.Figure | None:
    figure = _figure("share of the step", "", barmode="stack", xaxis_tickformat=".0%")
    kinds = dict.fromkeys(
        entry.operator
        for report in reports
        for step in report.operators.values()
        for entry in step.operators[:8]
    )
    steps = [
        (_label(name, label, reports), step)
        for report, name in zip(reports, names, strict=True)
        for label, step in report.operators.items()
    ]
    if not steps:
        return None
    for kind in kinds:
        entries = [
            next((each for each in step.operators if each.operator == kind), None)
            for _, step in steps
        ]
        figure.add_bar(
            y=[label for label, _ in steps],
            x=[each.share if each else 0 for each in entries],
            name=kind,
            orientation="h",
            customdata=[each.ms if each else 0 for each in entries],
            hovertemplate=f"{kind}: %{{x:.1%}}, %{{customdata:.3f}} ms<extra></extra>",
        )
    named = [
        sum(each.share for each in step.operators if each.operator in kinds) for _, step in steps
    ]
    figure.add_bar(
        y=[label for label, _ in steps],
        x=[1 - share for share in named],
        name="others",
        orientation="h",
        marker_color="#ddd",
        hovertemplate="others: %{x:.1%}<extra></extra>",
    )
    figure.update_layout(height=200 + 45 * len(steps), xaxis_range=[0, 1])
    return figure


def _sensors(reports: Reports) -> go.Figure | None:
    sensors = reports[0].sensors
    if not sensors.summary:
        return None
    figure = _figure("seconds", "share of the maximum")
    for name, values in sensors.summary.items():
        most = values.most or 1
        samples = [sample for sample in sensors.samples if name in sample]
        figure.add_scatter(
            x=[sample["seconds"] for sample in samples],
            y=[sample[name] / most for sample in samples],
            name=f"{name.replace('_', ' ')} (maximum {most:g})",
            customdata=[sample[name] for sample in samples],
            hovertemplate=f"{name}: %{{customdata}}<extra></extra>",
            mode="lines",
        )
    return figure


def _ways(reports: Reports, names: Sequence[str]) -> Iterator[tuple[str, EngineReport, str]]:
    for report, name in zip(reports, names, strict=True):
        for way in WAYS:
            yield name, report, way
