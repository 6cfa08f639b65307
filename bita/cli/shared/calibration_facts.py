"""The figures of a calibration for JSON, with units in their names."""

from typing import TYPE_CHECKING, Any

from bita.cli.shared.output import as_json

if TYPE_CHECKING:
    from bita.calibration.acceptance import Acceptance
    from bita.calibration.choose_tree import Choice
    from bita.calibration.latency import Latency

RANKS = (1, 5, 10)  # ranks that shares are summed up to


def acceptance_facts(acceptance: "Acceptance") -> dict[str, Any]:
    """Return how often drafts of masks, and guesses from the text, are right."""
    masks = [
        {
            "mask": row["mask"],
            "steps": row["count"],
            **{f"ranks_to_{rank}_share": round(sum(row["shares"][:rank]), 5) for rank in RANKS},
        }
        for row in acceptance.table()
    ]
    guesses = []
    for name, num_drafted in (("without masks", 0), ("with all masks", len(masks))):
        found = [position.guess(num_drafted) for position in acceptance.positions()]
        known = [guess for guess in found if guess.level]
        right = sum(guess.right > 0 for guess in known)
        guesses.append(
            {
                "name": name,
                "share_of_steps": len(known) / max(len(found), 1),
                "right_share": right / max(len(known), 1),
            }
        )
    return {"masks": masks, "guesses": guesses}


def latency_facts(latency: "Latency") -> dict[str, Any]:
    """Return the times of steps, [length of the text][size of the step]."""
    return {
        "rows": latency.rows,
        "cache_tokens": latency.cache_lengths,
        "median_ms": latency.median,
        "quartile_spread_ms": latency.spread,
        "fitted_ms": latency.fitted,
        "fit_error_share": latency.residual,
        "repeats": latency.repeats,
        "device": latency.device,
    }


def choice_facts(choice: "Choice") -> dict[str, Any]:
    """Return the chosen tree, and those that it was chosen from."""
    from bita.cli.shared.trees import state_facts

    facts: dict[str, Any] = as_json(choice.to_json())
    measured = ("measured_tokens_per_step", "measured_tokens_per_second")
    for each in (facts["chosen"], facts["ar"], facts["triangle"], *facts["others"]):
        each |= {name: each[name] or None for name in measured}
    names = ("rows", "expected_tokens_per_step", "expected_tokens_per_second")
    facts["by_rows"] = [dict(zip(names, each, strict=True)) for each in facts["by_rows"]]
    facts["states"] = state_facts(choice.chosen.tree)
    return facts
