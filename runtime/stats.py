"""What a session counts and times while it decodes."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from bita.tree import Tree


@dataclass
class Stats:
    """Figures of one generation, or of several since the session was opened.

    num_steps, num_tokens: decode steps and the tokens they emitted (the prefill's one not
    counted). step_ms: time of each decode step; backend_ms: the part of it inside the backend.
    prefill_ms, num_prompt_tokens: of all prefills. num_accepted: per node of the tree, how often
    it was accepted.
    """

    tree: Tree
    num_steps: int = 0
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    prefill_ms: float = 0.0
    step_ms: "array[float]" = field(default_factory=lambda: array("d"))
    backend_ms: "array[float]" = field(default_factory=lambda: array("d"))
    num_accepted: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.num_accepted = [0] * self.tree.num_nodes

    def count_step(
        self, path: Sequence[int], num_tokens: int, step_ms: float, backend_ms: float
    ) -> None:
        """Add one decode step that accepted `path` and emitted `num_tokens`."""
        self.num_steps += 1
        self.num_tokens += num_tokens
        self.step_ms.append(step_ms)
        self.backend_ms.append(backend_ms)
        for node in path:
            self.num_accepted[node] += 1

    @property
    def tokens_per_step(self) -> float:
        """tau: mean tokens emitted per decode step; 0.0 before the first."""
        return self.num_tokens / self.num_steps if self.num_steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decoding alone, without the prefill; 0.0 before the first step."""
        total_ms = sum(self.step_ms)
        return 1000 * self.num_tokens / total_ms if total_ms else 0.0

    @property
    def host_share(self) -> float:
        """Share of the decode time that is spent outside the backend."""
        total_ms = sum(self.step_ms)
        return 1 - sum(self.backend_ms) / total_ms if total_ms else 0.0

    @property
    def acceptance(self) -> dict[tuple[int, int], float]:
        """Share of steps that accepted a node, by (depth, rank); depths start at 1."""
        shares: dict[tuple[int, int], float] = {}
        nodes = list(zip(self.tree.depths, self.tree.ranks, self.num_accepted, strict=True))
        for depth, rank, count in nodes[1:]:
            share = count / self.num_steps if self.num_steps else 0.0
            shares[depth, rank] = shares.get((depth, rank), 0.0) + share
        return shares
