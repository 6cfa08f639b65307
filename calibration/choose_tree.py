"""Choose the tree that decodes fastest on a device: forecast it from measurements, then time it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bita.calibration.acceptance import Acceptance
from bita.calibration.latency import Latency
from bita.calibration.replay import replay
from bita.calibration.table_search import best_table
from bita.calibration.tree_search import best_trees, path_shares
from bita.calibration.turns import decode_in_turns, together
from bita.progress import OnCount, ignore_count
from bita.runtime.session import Prompt, Session
from bita.tree import Tree
from bita.tree_table import Trees, TreeTable

MIN_LEVELS = (0, 1)  # of the trees to search: without and with guesses from the text
MIN_ROWS, MAX_ROWS = 16, 128  # always searched up to the first, never beyond the second
CLOSE = 0.03  # trees whose expected speed is this close to the best one's are timed
MAX_MEASURED = 4  # trees to time, not counting AR and those for other costs
# Factors on the measured cost of rows beyond the first. On a shared machine this cost changes by
# the minute, so trees for a lower and a higher cost are timed too (docs/LOG.md, 2026-11-29).
OTHER_COSTS = (0.6, 1.5)
MIN_GAIN = 1.03  # ratio to the measured speed of AR for a tree to be taken instead


@dataclass(frozen=True)
class Candidate:
    """A tree, or trees by state, with its expected and its measured speed."""

    tree: Trees
    expected_tokens: float  # per step
    expected_speed: float  # tokens per second of decoding alone
    mean_rows: float  # of the expected steps
    measured_tokens: float = 0.0  # per step; 0 if not measured
    measured_speed: float = 0.0  # tokens per second; 0 if not measured

    def to_json(self) -> dict[str, Any]:
        return {
            "tree": str(self.tree),
            "rows": self.tree.num_rows,
            "mean_rows": round(self.mean_rows, 2),
            "expected_tokens_per_step": round(self.expected_tokens, 4),
            "expected_tokens_per_second": round(self.expected_speed, 2),
            "measured_tokens_per_step": round(self.measured_tokens, 4),
            "measured_tokens_per_second": round(self.measured_speed, 2),
        }


@dataclass(frozen=True)
class TreeForecast:
    """Expected speeds of trees on a device, before they are timed there."""

    ar: Candidate  # plain decoding
    trees: tuple[Candidate, ...]  # guarded, counted by replay, best first
    for_other_costs: tuple[Candidate, ...]  # the subset that is best if rows cost less or more
    by_rows: tuple[Candidate, ...]  # the best single tree with each number of rows
    triangle: Candidate  # BiTA's tree, for comparison


@dataclass(frozen=True)
class Choice:
    """A chosen tree and its alternatives."""

    chosen: Candidate  # what the engine will decode with
    ar: Candidate
    others: tuple[Candidate, ...]  # best first
    by_rows: tuple[Candidate, ...]  # as in the forecast
    triangle: Candidate  # as in the forecast

    @property
    def why(self) -> str:
        """Reason for the choice, as a clause for the report."""
        best = max(self.others, key=lambda c: c.measured_speed or c.expected_speed, default=None)
        if self.chosen is not self.ar:
            return f"it decodes {_ratio(self.chosen, self.ar):.2f} times as fast as AR"
        if best is None:
            return "no tree gives enough tokens for the cost of its rows"
        return (
            f"the best tree, {best.tree}, decodes {_ratio(best, self.ar):.2f} times as fast as AR, "
            f"but at least {MIN_GAIN} is required"
        )

    def __str__(self) -> str:
        return f"{self.chosen.tree}; {self.why}"

    def to_json(self) -> dict[str, Any]:
        return {
            "chosen": self.chosen.to_json(),
            "ar": self.ar.to_json(),
            "others": [other.to_json() for other in self.others],
            "triangle": self.triangle.to_json(),
            "why": self.why,
            "by_rows": [
                [c.tree.num_rows, round(c.expected_tokens, 4), round(c.expected_speed, 2)]
                for c in self.by_rows
            ],
        }


def forecast_trees(
    acceptance: Acceptance,
    latency: Latency,
    num_masks: int,
    mode: str,
    min_levels: Sequence[int] = MIN_LEVELS,
    min_exact_rows: int = 2,
) -> TreeForecast:
    """Find the trees expected to be fastest: one for each number of rows, and trees by state.

    Expected tokens are counted by replay on the acceptance's own texts, and T(q) is taken at their
    mean length. The fastest trees include the costs of steps, by which a guard takes smaller trees
    for texts whose drafts do not pay.

    Args:
        acceptance: Measured texts.
        latency: T(q) of the device.
        num_masks: Largest number of masks on a node; 0 for drafts from the text alone.
        mode: "exact" has nodes of the spine only.
        min_levels: Values of `min_level` that trees may have; (0,) for drafts of masks alone.
        min_exact_rows: Smallest step whose rows are bit-identical to those of larger steps.
    """

    def milliseconds(rows: int) -> float:
        return latency.at(rows, acceptance.mean_length)

    ar = Candidate(Tree.root_only(), 1.0, 1000 / milliseconds(1), 1)
    found, widest = _best_by_rows(acceptance, milliseconds, num_masks, mode, min_levels)
    counted = [expected_of(tree, acceptance, latency, mode, min_exact_rows) for tree in found]
    by_rows = sorted(counted, key=lambda c: c.tree.num_rows)
    trees: list[Candidate] = []
    others: list[Candidate] = []
    if counted:
        times = [milliseconds(max(rows, min_exact_rows)) for rows in range(1, widest + 1)]

        def by_state(start: Trees, cost: float = 1.0, max_masks: int = num_masks) -> Trees:
            scaled = [times[0] + cost * (each - times[0]) for each in times]
            return best_table(acceptance, scaled, max_masks, mode, start, any(min_levels))

        def guarded(trees: Trees) -> Candidate:
            table = TreeTable.of(trees).with_costs(times)
            return expected_of(table, acceptance, latency, mode, min_exact_rows)

        start = max(counted, key=lambda c: c.expected_speed).tree
        for_costs = [*dict.fromkeys(by_state(start, cost) for cost in OTHER_COSTS)]
        others = [*map(guarded, for_costs)]
        # a search ends at a local optimum: one that begins with masks keeps them, and one that
        # begins without finds few
        starts = [start, *for_costs, by_state(Tree.root_only(), max_masks=0)]
        if num_masks:
            starts.append(Tree.chain(1, 1))
        searched = [guarded(by_state(trees)) for trees in dict.fromkeys(starts)]
        best = max(searched, key=lambda c: c.expected_speed)
        trees = [*dict.fromkeys((*map(guarded, found), best, *others))]
        trees.sort(key=lambda c: -c.expected_speed)
    triangle = expected_of(Tree.triangle(), acceptance, latency, mode)
    return TreeForecast(ar, tuple(trees), tuple(others), tuple(by_rows), triangle)


def _best_by_rows(
    acceptance: Acceptance,
    milliseconds: Callable[[int], float],
    num_masks: int,
    mode: str,
    min_levels: Sequence[int],
) -> tuple[list[Tree], int]:
    """Return the best tree with each number of rows and any min_level, and the largest size."""
    found: dict[int, tuple[float, Tree]] = {}
    widest = MIN_ROWS
    for min_level in min_levels:
        shares = path_shares(acceptance, num_masks, min_level, mode)
        most = sum(shares[-1].values())  # tokens per step of the tree of all paths
        max_rows = max(_last_that_can_win(milliseconds, most), MIN_ROWS)
        for rows, best in best_trees(shares, max_rows, min_level).items():
            if not best.tree.is_ar and best.tokens_per_step > found.get(rows, (0.0, None))[0]:
                found[rows] = best.tokens_per_step, best.tree
        widest = max(widest, max_rows)
    return [tree for _, tree in found.values()], widest


def expected_of(
    trees: Trees, acceptance: Acceptance, latency: Latency, mode: str, min_exact_rows: int = 2
) -> Candidate:
    """Return the tokens per step that a replay counts, and the speed that follows from T(q).

    A step takes at least T(min_exact_rows).
    """
    table = TreeTable.of(trees)
    rows = [visit.tree.num_rows for visits in replay(acceptance, table, mode) for visit in visits]
    times = {q: latency.at(max(q, min_exact_rows), acceptance.mean_length) for q in {*rows}}
    num_tokens, milliseconds = acceptance.num_positions, sum(times[q] for q in rows)
    speed = 1000 * num_tokens / milliseconds
    return Candidate(trees, num_tokens / len(rows), speed, sum(rows) / len(rows))


def measure_choice(
    session: Session,
    forecast: TreeForecast,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 96,
    on_progress: OnCount = ignore_count,
) -> Choice:
    """Decode each prompt with AR and the most promising trees, and choose the fastest.

    AR runs with one row and wins unless a tree is faster by MIN_GAIN. If no answer has a decode
    step, there is nothing to time, and expectations decide.
    """
    ar, expected = forecast.ar, forecast.trees
    best = expected[0].expected_speed if expected else 0.0
    close = [c for c in expected if c.expected_speed > (1 - CLOSE) * best][:MAX_MEASURED]
    if expected and len(close) < 2:
        close = list(expected[:2])
    close += [each for each in forecast.for_other_costs if each not in close]
    sessions = [session.using(tree=ar.tree, min_rows=1)]
    sessions += [session.using(tree=candidate.tree) for candidate in close]
    timed = map(together, decode_in_turns(sessions, prompts, max_new_tokens, on_progress))
    measured = [
        replace(
            candidate, measured_tokens=sums.tokens_per_step, measured_speed=sums.tokens_per_second
        )
        for candidate, sums in zip([ar, *close], timed, strict=True)
    ]
    if not all(candidate.measured_speed > 0 for candidate in measured):
        return expected_choice(forecast)
    ar, trees = measured[0], sorted(measured[1:], key=lambda c: -c.measured_speed)
    wins = bool(trees) and trees[0].measured_speed >= MIN_GAIN * ar.measured_speed
    chosen = trees[0] if wins else ar
    return Choice(chosen, ar, _without(chosen, trees), forecast.by_rows, forecast.triangle)


def expected_choice(forecast: TreeForecast) -> Choice:
    """Choose from expectations alone, for a device that is not available."""
    ar, expected = forecast.ar, forecast.trees
    wins = bool(expected) and expected[0].expected_speed >= MIN_GAIN * ar.expected_speed
    chosen = expected[0] if wins else ar
    return Choice(chosen, ar, _without(chosen, expected), forecast.by_rows, forecast.triangle)


def _without(chosen: Candidate, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    return tuple(candidate for candidate in candidates if candidate is not chosen)


def _last_that_can_win(milliseconds: Callable[[int], float], max_tokens: float) -> int:
    """Return the largest step that would beat AR if it gave `max_tokens`."""
    fit = [q for q in range(2, MAX_ROWS + 1) if milliseconds(q) <= max_tokens * milliseconds(1)]
    return max(fit, default=1)


def _ratio(candidate: Candidate, ar: Candidate) -> float:
    if candidate.measured_speed and ar.measured_speed:
        return candidate.measured_speed / ar.measured_speed
    return candidate.expected_speed / ar.expected_speed
