"""The summary table of a profile, for the terminal and the page."""

from bita.calibration.profiling.figures import AR, TREES, WAYS, EngineReport, Percentiles


def summary_of(report: EngineReport) -> dict[str, str]:
    """Return the main figures of an engine as texts by label."""
    facts, memory = report.facts, report.memory
    ar, trees = report.decode[AR], report.decode[TREES]
    peak = memory.decoding
    return {
        "model": facts.model,
        "precision, backend": f"{facts.precision}, {facts.backend}",
        "tree, mode": f"{facts.tree}, {facts.mode}",
        "tokens/s, AR in one row": f"{ar.tokens_per_second:.1f}",
        "tokens/s, trees": f"{trees.tokens_per_second:.1f}",
        "tokens per step (masks, guesses)": (
            f"{trees.tokens_per_step:.3f} ({trees.masks_per_step:.3f}, "
            f"{trees.guesses_per_step:.3f})"
        ),
        "steps whose tree the guard made smaller": f"{100 * trees.guarded_share:.1f} %",
        "ms per step, p50 / p90 / p99, AR": _text(ar.step_ms),
        "ms per step, p50 / p90 / p99, trees": _text(trees.step_ms),
        "ms to first token, p50 / p90 / p99": _text(trees.first_token_ms),
        "ms from opening to first token": f"{facts.start_up.first_token_ms:.0f}",
        "host ms per step": f"{trees.host_ms_per_step:.3f}",
        "speed in the last quarter over the first, AR / trees": (
            " / ".join(f"{report.decode[way].drift:.3f}" for way in WAYS)
        ),
        "memory peak, MB (GPU)": (
            f"{peak.host / 1e6:.0f} ({peak.gpu / 1e6:.0f})" if peak else "not measured"
        ),
        "engine on disk, MB": f"{memory.engine_bytes / 1e6:.0f}",
    }


def _text(times: Percentiles) -> str:
    return f"{times.p50:.2f} / {times.p90:.2f} / {times.p99:.2f}"
