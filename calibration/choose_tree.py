"""The tree that decodes fastest on a device: expected from what was measured, then measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bita.calibration.acceptance import Acceptance, replay
from bita.calibration.latency import Latency
from bita.calibration.tree_search import best_trees, path_shares
from bita.runtime.session import Prompt, Session
from bita.tree import Tree

MIN_MATCHES = (0, 1, 2, 3)  # what trees with and without guesses from the text are looked for
LEAST_ROWS, MOST_ROWS = 16, 128  # searched in any case, and at most
CLOSE = 0.03  # expected speeds this near to the best are decided by measuring
MOST_MEASURED = 4  # trees beside AR
LEAST_GAIN = 1.03  # of the measured speed, for a tree to be taken instead of AR


@dataclass(frozen=True)
class Candidate:
    """A tree with what is expected of it and what was measured (0 where it was not).

    speed: tokens per second of decoding alone.
    """

    tree: Tree
    expected_tokens: float
    expected_speed: float
    measured_tokens: float = 0.0
    measured_speed: float = 0.0

    @property
    def name(self) -> str:
        return "AR" if self.tree.num_nodes == 1 else str(self.tree)

    def to_json(self) -> dict[str, Any]:
        return {
            "tree": str(self.tree),
            "rows": self.tree.num_rows,
            "expected_tokens_per_step": round(self.expected_tokens, 4),
            "expected_tokens_per_second": round(self.expected_speed, 2),
            "measured_tokens_per_step": round(self.measured_tokens, 4),
            "measured_tokens_per_second": round(self.measured_speed, 2),
        }


@dataclass(frozen=True)
class Plan:
    """What is expected of trees. ar: plain decoding. trees: best first, counted by replay.

    by_rows: the best tree of each number of rows.
    """

    ar: Candidate
    trees: tuple[Candidate, ...]
    by_rows: tuple[Candidate, ...]


@dataclass(frozen=True)
class Choice:
    """chosen: what the engine decodes with. ar: plain decoding. others: best first.

    by_rows: as in the plan.
    """

    chosen: Candidate
    ar: Candidate
    others: tuple[Candidate, ...] = ()
    by_rows: tuple[Candidate, ...] = ()

    @property
    def why(self) -> str:
        """One sentence for a reader of the report."""
        best = max(self.others, key=lambda c: c.measured_speed or c.expected_speed, default=None)
        if self.chosen is not self.ar:
            return f"it decodes {_ratio(self.chosen, self.ar):.2f} times as fast as AR"
        if best is None:
            return "no tree has tokens enough for what its rows cost"
        return (
            f"the best tree, {best.name}, decodes {_ratio(best, self.ar):.2f} times as fast as AR; "
            f"less than {LEAST_GAIN} does not pay"
        )

    def __str__(self) -> str:
        return f"{self.chosen.name}; {self.why}"

    def to_json(self) -> dict[str, Any]:
        return {
            "chosen": self.chosen.to_json(),
            "ar": self.ar.to_json(),
            "others": [other.to_json() for other in self.others],
            "why": self.why,
            "by_rows": [
                [c.tree.num_rows, round(c.expected_tokens, 4), round(c.expected_speed, 2)]
                for c in self.by_rows
            ],
        }


def plan_trees(acceptance: Acceptance, latency: Latency, num_masks: int, mode: str) -> Plan:
    """AR, and the trees expected to be fastest, one for each number of rows.

    mode: "exact" knows nodes of the spine only. Expected tokens are counted by replay on the
    acceptance's own texts, T(q) is taken at their mean length.
    """

    def milliseconds(rows: int) -> float:
        return latency.at(rows, acceptance.mean_length)

    ar = Candidate(Tree.root_only(), 1.0, 1000 / milliseconds(1))
    found: dict[int, Candidate] = {}
    for min_match in MIN_MATCHES:
        shares = path_shares(acceptance, num_masks, min_match, mode)
        most = sum(shares[-1].values())  # tokens per step of a tree of all paths
        max_rows = max(_last_that_can_win(milliseconds, most), LEAST_ROWS)
        for rows, best in best_trees(shares, max_rows, min_match).items():
            # a step has two rows at least, or AR would not be bit-identical to it
            speed = 1000 * best.tokens_per_step / milliseconds(max(rows, 2))
            if best.tree.num_nodes > 1 and (
                rows not in found or speed > found[rows].expected_speed
            ):
                found[rows] = Candidate(best.tree, best.tokens_per_step, speed)
    counted = []
    for candidate in found.values():
        tokens = replay(acceptance, candidate.tree, mode)
        speed = 1000 * tokens / milliseconds(max(candidate.tree.num_rows, 2))
        counted.append(replace(candidate, expected_tokens=tokens, expected_speed=speed))
    by_rows = sorted(counted, key=lambda c: c.tree.num_rows)
    counted.sort(key=lambda c: -c.expected_speed)
    return Plan(ar, tuple(counted), tuple(by_rows))


def measure_choice(
    session: Session,
    plan: Plan,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 96,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Choice:
    """Decode with AR and the most promising trees in turns, prompt by prompt, and choose.

    AR runs with one row and wins unless a tree is faster by LEAST_GAIN.
    """
    ar, planned = plan.ar, plan.trees
    best = planned[0].expected_speed if planned else 0.0
    close = [c for c in planned if c.expected_speed > (1 - CLOSE) * best][:MOST_MEASURED]
    if planned and len(close) < 2:
        close = list(planned[:2])
    sessions = [session.using(tree=ar.tree, min_rows=1)]
    sessions += [session.using(tree=candidate.tree) for candidate in close]
    for other in sessions:  # warm
        other.generate(prompts[0], 8)
        other.reset_stats()
    for number, prompt in enumerate(prompts):
        for turn in range(len(sessions)):
            other = sessions[(number + turn) % len(sessions)]
            other.generate(prompt, max_new_tokens)
        on_progress(number + 1, len(prompts))
    measured = [
        replace(
            candidate,
            measured_tokens=other.stats.tokens_per_step,
            measured_speed=other.stats.tokens_per_second,
        )
        for candidate, other in zip([ar, *close], sessions, strict=True)
    ]
    ar, trees = measured[0], sorted(measured[1:], key=lambda c: -c.measured_speed)
    wins = bool(trees) and trees[0].measured_speed >= LEAST_GAIN * ar.measured_speed
    chosen = trees[0] if wins else ar
    return Choice(chosen, ar, tuple(c for c in trees if c is not chosen), plan.by_rows)


def planned_choice(plan: Plan) -> Choice:
    """The same from expectations alone, for a device that is not at hand."""
    ar, planned = plan.ar, plan.trees
    wins = bool(planned) and planned[0].expected_speed >= LEAST_GAIN * ar.expected_speed
    chosen = planned[0] if wins else ar
    return Choice(chosen, ar, tuple(c for c in planned if c is not chosen), plan.by_rows)


def _last_that_can_win(milliseconds: Callable[[int], float], most_tokens: float) -> int:
    """The largest step that would beat AR if it gave `most_tokens`."""
    fit = [q for q in range(2, MOST_ROWS + 1) if milliseconds(q) <= most_tokens * milliseconds(1)]
    return max(fit, default=1)


def _ratio(candidate: Candidate, ar: Candidate) -> float:
    if candidate.measured_speed and ar.measured_speed:
        return candidate.measured_speed / ar.measured_speed
    return candidate.expected_speed / ar.expected_speed
