"""What a session counts and times while it decodes."""

from array import array
from collections import Counter
from dataclasses import dataclass, field

from bita.runtime.decoding.memory import MemoryWatch
from bita.tree import Path


@dataclass
class Stats:
    """Figures of one generation, or of several since the session was opened.

    num_steps: decode steps of each text; several texts may share one.
    num_guarded_steps: those of them whose tree the guard made smaller.
    num_tokens: tokens of the answers that decode steps emitted; the prefill's one is not counted.
    num_prompt_tokens: tokens of all prompts.
    num_reused_tokens: those of them that the cache held already, from a text that begins alike.
    prefill_ms: time of all prefills.
    step_ms: time of each decode step, once if several texts share it.
    backend_ms: the part of it inside the backend.
    num_rows: of all decode steps.
    num_accepted: by path of a node, how often it was accepted; the root () in every step.
    num_from_text: accepted nodes whose draft was no mask's: a guess from the text so far or from
    the adapter's table of continuations, or what a grammar forced.
    memory: of the process and on the GPU.
    """

    num_steps: int = 0
    num_guarded_steps: int = 0
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    prefill_ms: float = 0.0
    step_ms: "array[float]" = field(default_factory=lambda: array("d"))
    backend_ms: "array[float]" = field(default_factory=lambda: array("d"))
    num_rows: int = 0
    num_accepted: "Counter[Path]" = field(default_factory=Counter)
    num_from_text: int = 0
    memory: MemoryWatch = field(default_factory=MemoryWatch)

    def count_prompt(self, num_tokens: int, num_reused: int) -> None:
        """Add a prompt."""
        self.num_prompt_tokens += num_tokens
        self.num_reused_tokens += num_reused

    def count_step(self, step_ms: float, backend_ms: float, num_rows: int) -> None:
        """Add the time of a decode step."""
        self.step_ms.append(step_ms)
        self.backend_ms.append(backend_ms)
        self.num_rows += num_rows

    def count_path(self, path: Path, num_guesses: int = 0) -> None:
        """Add that a text's decode step accepted `path`; who keeps its tokens counts them.

        num_guesses: nodes of the spine, from the root on, whose draft was no mask's.
        """
        self.num_steps += 1
        for depth in range(len(path) + 1):
            self.num_accepted[path[:depth]] += 1
        for rank in path[:num_guesses]:
            if rank != 1:  # beside the spine, a mask's draft
                break
            self.num_from_text += 1

    @property
    def tokens_per_step(self) -> float:
        """tau: mean tokens emitted per decode step; 0.0 before the first."""
        return self.num_tokens / self.num_steps if self.num_steps else 0.0

    @property
    def num_from_masks(self) -> int:
        """Accepted nodes that held a mask's draft."""
        return sum(n for path, n in self.num_accepted.items() if path) - self.num_from_text

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
        for path, count in self.num_accepted.items():
            if path:
                place = len(path), path[-1]
                shares[place] = shares.get(place, 0.0) + count / self.num_steps
        return shares
