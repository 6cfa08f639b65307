"""The decode round on token ids: prefill, then draft, verify, accept and commit in one step."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from bita.adapter import Adapter
from bita.errors import PromptError, TreeError, raise_faults
from bita.runtime.backend import Backend, Step
from bita.runtime.drafting import Drafter, Drafts, accept, spine_children
from bita.runtime.layout import PREFILL_ROWS, prefill_layout, tree_layout
from bita.runtime.ngrams import NgramIndex
from bita.runtime.stats import Stats
from bita.tree import Tree
from bita.tree_table import Trees, TreeTable

ROOT_ONLY = Tree.root_only()


class TreeDecoder:
    """Decodes one text at a time over preallocated buffers.

    trees: one, or one for each state; Tree.root_only() decodes plainly (AR). mode: "exact" accepts
    along the spine only, "tree" accepts every node. min_rows: 2 makes AR bit-identical to exact
    tree decoding (kernels for one row sum in another order), 1 is fastest. Raises TreeError if a
    tree does not fit.
    """

    def __init__(
        self, backend: Backend, adapter: Adapter, trees: Trees, mode: str, min_rows: int
    ) -> None:
        _check_fit(trees, adapter, backend)
        self.trees = trees
        self.adapter = adapter
        self.mode = mode
        self.stats = Stats()
        self._backend = backend
        self._cache = backend.cache
        self._min_rows = min_rows
        self._table = TreeTable.of(trees)
        depth = max(tree.max_depth for tree in self._table.trees)
        self._drafts = Drafts(max(depth, adapter.num_masks), backend.num_ranks)
        self._pairs = backend.pairs.tables(adapter)
        self._ngrams = NgramIndex() if self._table.uses_text else None
        self._root = 0
        self._bound = [self._bind(tree) for tree in self._table.trees]
        self._narrow = self._bind(ROOT_ONLY)
        self._full_prefill: Step | None = None
        self._margin = 0.0

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that leaves room for a step."""
        return self._cache.capacity - self.adapter.prefix_length - self._narrow.step.num_slots

    @property
    def text_number(self) -> int:
        """Which text the cache holds: another number after another prefill."""
        return self._cache.text_number

    @property
    def is_full(self) -> bool:
        """Whether the cache has no room for another step."""
        return self._cache.length > self.max_prompt_tokens

    def check_prompt(self, token_ids: Sequence[int]) -> None:
        """Raise PromptError if a prompt is empty, too long, or holds an id outside [0, V)."""
        if not len(token_ids):
            raise PromptError("the prompt is empty; give at least one token")
        if len(token_ids) > self.max_prompt_tokens:
            raise PromptError(
                f"the prompt has {len(token_ids)} tokens; this engine holds "
                f"{self.max_prompt_tokens}: shorten it, or rebuild with a larger CAPACITY"
            )
        low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= self._backend.vocab_size:
            raise PromptError(
                f"token ids must lie in [0, {self._backend.vocab_size}); "
                f"the prompt has {low if low < 0 else high}"
            )

    def prefill(self, token_ids: Sequence[int]) -> int:
        """Forget the last text, compute a prompt and return the first new token.

        Raises PromptError as `check_prompt` does.
        """
        self.check_prompt(token_ids)
        began = perf_counter()
        self._cache.start(self.adapter)
        tokens = np.asarray(token_ids, np.int64)
        last = (len(tokens) - 1) // PREFILL_ROWS * PREFILL_ROWS
        for start in range(0, last, PREFILL_ROWS):
            self._prefill_piece(tokens[start : start + PREFILL_ROWS])
        self._root = self._prefill_end(tokens[last:])
        if self._ngrams is not None:
            self._ngrams.start([*token_ids, self._root])
        self.stats.prefill_ms += 1000 * (perf_counter() - began)
        self.stats.num_prompt_tokens += len(tokens)
        return self._root

    def margin(self, token_ids: Sequence[int]) -> float:
        """How far the best logit behind this text is above the second; forgets the last text."""
        self.prefill(token_ids)
        return self._margin

    def advance(self) -> list[int]:
        """Run one draft-verify round and return the tokens it committed (1 to depth + 1)."""
        began = perf_counter()
        bound = self._bound_now()
        tree, step = bound.tree, bound.step
        nodes = step.token_ids[0, : tree.num_nodes]
        nodes[0] = self._root
        bound.drafter.fill(nodes, self._guess(tree))
        ran = perf_counter()
        step.run()
        backend_ms = 1000 * (perf_counter() - ran)
        tokens, chosen = nodes.tolist(), step.top_ids[: tree.num_nodes, 0].tolist()
        path, bonus = accept(bound.children, tokens, chosen)
        self._cache.commit(path)
        group = bound.groups[path[-1]]
        self._drafts.read(step.top_ids[group], step.top_logits[group])
        self._root = bonus
        emitted = [*(tokens[node] for node in path[1:]), bonus]
        if self._ngrams is not None:
            self._ngrams.extend(emitted)
        step_ms = 1000 * (perf_counter() - began)
        self.stats.count_step(tree.paths[path[-1]], len(emitted), step_ms, backend_ms)
        return emitted

    def _bound_now(self) -> "_BoundTree":
        """The state's tree, or the root where the cache has no room for it."""
        match = 0 if self._ngrams is None else self._ngrams.match_length()
        bound = self._bound[self._table.number(self._drafts.num_masks, match)]
        fits = self._cache.num_slots_used + bound.step.num_slots <= self._cache.capacity
        return bound if fits else self._narrow

    def _guess(self, tree: Tree) -> list[int]:
        """What the spine takes from the text so far."""
        if self._ngrams is None or not tree.min_match:
            return []
        return self._ngrams.guess(tree.spine_length, tree.min_match)

    def _bind(self, tree: Tree) -> "_BoundTree":
        return _BoundTree(
            tree,
            self._backend.bind(tree_layout(tree, self._min_rows), self.adapter),
            Drafter(tree, self._drafts, self._pairs),
            spine_children(tree) if self.mode == "exact" else tree.children,
            tuple(slice(group.start, group.stop) for group in tree.groups),
        )

    def _prefill_piece(self, tokens: np.ndarray) -> None:
        if self._full_prefill is None:
            layout = prefill_layout(PREFILL_ROWS, 0, self._min_rows)
            self._full_prefill = self._backend.bind(layout, self.adapter)
        self._full_prefill.token_ids[0] = tokens
        self._full_prefill.run()
        self._cache.length += len(tokens)

    def _prefill_end(self, tokens: np.ndarray) -> int:
        """The last piece of the prompt with the first mask group behind it."""
        room = self._cache.capacity - self._cache.num_slots_used - len(tokens)
        num_masks = min(self._table.max_masks, room)
        layout = prefill_layout(len(tokens), num_masks, self._min_rows)
        step = self._backend.bind(layout, self.adapter)
        step.token_ids[0, : len(tokens)] = tokens
        step.run()
        self._cache.length += len(tokens)
        masks = slice(1, 1 + num_masks)
        self._drafts.read(step.top_ids[masks], step.top_logits[masks])
        self._margin = float(step.top_logits[0, 0] - step.top_logits[0, 1])
        return int(step.top_ids[0, 0])


@dataclass(frozen=True, eq=False)
class _BoundTree:
    """A tree with all that a step of it needs. children: that may be accepted, of each node.
    groups: the mask rows behind each node.
    """

    tree: Tree
    step: Step
    drafter: Drafter
    children: tuple[tuple[int, ...], ...]
    groups: tuple[slice, ...]


def _check_fit(trees: Trees, adapter: Adapter, backend: Backend) -> None:
    num_slots = backend.cache.capacity - adapter.prefix_length
    faults = trees.misfits(adapter.num_masks, backend.num_ranks, num_slots)
    raise_faults(TreeError, "the tree does not fit the engine", faults)
