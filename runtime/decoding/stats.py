"""Statistics that a session collects while it decodes."""

from array import array
from collections import Counter
from dataclasses import dataclass, field

from bita.runtime.decoding.memory import MemoryWatch
from bita.tree import Path


@dataclass
class Stats:
    """Statistics of all generations of a session since it was opened or last reset.

    Attributes:
        num_steps: Decode steps, counted once for each text that takes part.
        num_guarded_steps: Those of `num_steps` for which the guard chose a smaller tree.
        num_tokens: Answer tokens emitted by decode steps. The one token of each prefill is not
            counted.
        num_prompt_tokens: Tokens of all prompts.
        num_reused_tokens: Prompt tokens that were already cached, from a text with the same
            beginning.
        prefill_ms: Total time of all prefills.
        step_ms: Time of each decode step, once if several texts share it.
        backend_ms: Part of each time in `step_ms` that was spent in the backend.
        num_rows: Total rows of all decode steps.
        num_accepted: Number of times that each node was accepted, by its path. The root, (), is
            accepted in every step.
        num_from_text: Accepted nodes whose draft did not come from a mask token, but from the
            text so far, the adapter's table of continuations, or a grammar.
        memory: Memory of the process and on the GPU.
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
        """Count a prompt."""
        self.num_prompt_tokens += num_tokens
        self.num_reused_tokens += num_reused

    def count_step(self, step_ms: float, backend_ms: float, num_rows: int) -> None:
        """Add the times and rows of a decode step."""
        self.step_ms.append(step_ms)
        self.backend_ms.append(backend_ms)
        self.num_rows += num_rows

    def count_path(self, path: Path, num_guesses: int = 0) -> None:
        """Count a text's decode step that accepted `path`. Its tokens are counted elsewhere.

        Args:
            path: Ranks of the accepted nodes.
            num_guesses: Leading nodes of the spine whose draft did not come from a mask token.
        """
        self.num_steps += 1
        for depth in range(len(path) + 1):
            self.num_accepted[path[:depth]] += 1
        for rank in path[:num_guesses]:
            if rank != 1:  # off the spine: a mask's draft
                break
            self.num_from_text += 1

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens emitted per decode step (tau); 0.0 before the first step."""
        return self.num_tokens / self.num_steps if self.num_steps else 0.0

    @property
    def num_from_masks(self) -> int:
        """Accepted nodes whose draft came from a mask token."""
        return sum(n for path, n in self.num_accepted.items() if path) - self.num_from_text

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of decoding, without the prefill; 0.0 before the first step."""
        total_ms = sum(self.step_ms)
        return 1000 * self.num_tokens / total_ms if total_ms else 0.0

    @property
    def host_share(self) -> float:
        """Share of the decode time spent outside the backend."""
        total_ms = sum(self.step_ms)
        return 1 - sum(self.backend_ms) / total_ms if total_ms else 0.0

    @property
    def acceptance(self) -> dict[tuple[int, int], float]:
        """Share of steps that accepted a node, by its (depth, rank); both start at 1."""
        shares: dict[tuple[int, int], float] = {}
        for path, count in self.num_accepted.items():
            if path:
                place = len(path), path[-1]
                shares[place] = shares.get(place, 0.0) + count / self.num_steps
        return shares
