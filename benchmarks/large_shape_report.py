"""Summarize the rounds of large_shape.py as figures and as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from rows import describe_rows, summary

Figures = dict[str, Any]


def speeds(step: Mapping[str, float], num_bytes: int, copy_speed: float) -> Figures:
    """Compute the speed and memory bandwidth from the time of a step of one row, or of a token."""
    speed = num_bytes / step["p50_ms"] / 1e6
    return {
        "weight_bytes": num_bytes,
        "tokens_per_second": round(1000 / step["p50_ms"], 2),
        "weights_gb_per_s": round(speed, 2),
        "share_of_copy": round(speed / copy_speed, 3),
    }


def summarize(
    rounds: Sequence[Figures], step_bytes: Mapping[str, int], length: int
) -> dict[str, Any]:
    """Compute the figures over all rounds; each engine's step reads `step_bytes` of weights."""
    copy_speed = max(found["copy_gb_per_s"] for found in rounds)
    report: Figures = {"copy_gb_per_s": round(copy_speed, 2), "engines": {}, "llama_cpp": {}}
    for name, sizes in rounds[0]["step_ms"].items():
        times = {int(q): join([found["step_ms"][name][q] for found in rounds]) for q in sizes}
        first = summary(next(iter(times.values())))
        figures = speeds(first, step_bytes[name], copy_speed)
        report["engines"][name] = {**figures, "after": {str(length): describe_rows(times)}}
    for name, found in rounds[0]["llama_cpp"].items():
        tokens = summary(join([found["llama_cpp"][name]["token_ms"] for found in rounds]))
        figures = speeds(tokens, found["weight_bytes"], copy_speed)
        report["llama_cpp"][name] = {**figures, "token_ms": tokens}
    for name, figures in report["engines"].items():
        peer = report["llama_cpp"][name.split()[-1]]
        ratio = figures["tokens_per_second"] / peer["tokens_per_second"]
        figures["times_llama_cpp"] = round(ratio, 3)
    return report


def join(lists: Sequence[Sequence[float]]) -> list[float]:
    return [each for part in lists for each in part]


def print_table(report: Figures, length: int) -> None:
    """Print one line for each engine and file."""
    print(f"\nms per step after {length} tokens; a copy reaches {report['copy_gb_per_s']} GB/s")
    sizes = next(iter(report["engines"].values()))["after"][str(length)]
    heads = [f"T({size})" for size in sizes]
    print(f"{'':22}{'MB':>7}{''.join(f'{head:>8}' for head in heads)}  tok/s   GB/s  of copy")
    for name, row in report["engines"].items():
        times = [step["p50_ms"] for step in row["after"][str(length)].values()]
        print_row(f"bita-edge {name}", row, times, len(heads))
    for name, row in report["llama_cpp"].items():
        print_row(f"llama.cpp {name}", row, [row["token_ms"]["p50_ms"]], len(heads))


def print_row(name: str, row: Figures, times: Sequence[float], num_times: int) -> None:
    shown = "".join(f"{ms:8.2f}" for ms in times).ljust(8 * num_times)
    print(
        f"{name:22}{row['weight_bytes'] / 1e6:7.0f}{shown}{row['tokens_per_second']:7.1f}"
        f"{row['weights_gb_per_s']:7.1f}{row['share_of_copy']:9.3f}"
    )
