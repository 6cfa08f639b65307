"""The decode round on token ids: prefill, then draft, verify, accept and commit in one step."""

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from bita.adapter import Adapter
from bita.errors import PromptError, TreeError, raise_faults
from bita.runtime.drafting import Drafter, accept, spine_children
from bita.runtime.layout import prefill_layout, tree_layout
from bita.runtime.ngrams import NgramIndex
from bita.runtime.ort_backend import BoundStep, OrtBackend
from bita.runtime.stats import Stats
from bita.tree import Tree

ROOT_ONLY = Tree.root_only()
PREFILL_ROWS = 256  # prompt tokens per prefill step: bounds the memory of long prompts


class TreeDecoder:
    """Decodes one text at a time over preallocated buffers.

    tree: Tree.root_only() decodes plainly (AR). mode: "exact" accepts along the spine only, "tree"
    accepts every node. min_rows: 2 makes AR bit-identical to exact tree decoding (kernels for one
    row sum in another order), 1 is fastest. Raises TreeError if the tree does not fit.
    """

    def __init__(
        self, backend: OrtBackend, adapter: Adapter, tree: Tree, mode: str, min_rows: int
    ) -> None:
        _check_fit(tree, adapter, backend)
        self.tree = tree
        self.adapter = adapter
        self.mode = mode
        self.stats = Stats(tree)
        self._backend = backend
        self._cache = backend.cache
        self._min_rows = min_rows
        self._children = spine_children(tree) if mode == "exact" else tree.children
        self._drafter = Drafter(tree, backend.pairs.tables(adapter))
        self._ngrams = NgramIndex() if tree.min_match else None
        self._root = 0
        self._step = backend.bind(tree_layout(tree, min_rows), adapter)
        self._narrow_step = self._step
        if tree.num_rows > min_rows:
            self._narrow_step = backend.bind(tree_layout(ROOT_ONLY, min_rows), adapter)
        self._full_prefill: BoundStep | None = None
        self._margin = 0.0

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that leaves room for a step."""
        return self._cache.capacity - self.adapter.prefix_length - self._min_rows

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
        fits = self._cache.num_slots_used + self._step.num_rows <= self._cache.capacity
        tree, step = (self.tree, self._step) if fits else (ROOT_ONLY, self._narrow_step)
        nodes = step.token_ids[0, : tree.num_nodes]
        nodes[0] = self._root
        if fits:
            self._drafter.fill(nodes, self._guess())
        ran = perf_counter()
        step.run()
        backend_ms = 1000 * (perf_counter() - ran)
        tokens, chosen = nodes.tolist(), step.top_ids[: tree.num_nodes, 0].tolist()
        path, bonus = accept(self._children if fits else tree.children, tokens, chosen)
        self._cache.commit(path)
        if fits:
            self._drafter.read_group(path[-1], step.top_ids, step.top_logits)
        self._root = bonus
        emitted = [*(tokens[node] for node in path[1:]), bonus]
        if self._ngrams is not None:
            self._ngrams.extend(emitted)
        step_ms = 1000 * (perf_counter() - began)
        self.stats.count_step(path, len(emitted), step_ms, backend_ms)
        return emitted

    def _guess(self) -> list[int]:
        """What the spine takes from the text so far."""
        if self._ngrams is None:
            return []
        return self._ngrams.guess(self.tree.spine_length, self.tree.min_match)

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
        num_masks = min(self.tree.num_masks[0], room)
        layout = prefill_layout(len(tokens), num_masks, self._min_rows)
        step = self._backend.bind(layout, self.adapter)
        step.token_ids[0, : len(tokens)] = tokens
        step.run()
        self._cache.length += len(tokens)
        masks = slice(1, 1 + num_masks)
        self._drafter.read(step.top_ids[masks], step.top_logits[masks])
        self._margin = float(step.top_logits[0, 0] - step.top_logits[0, 1])
        return int(step.top_ids[0, 0])


def _check_fit(tree: Tree, adapter: Adapter, backend: OrtBackend) -> None:
    num_slots = backend.cache.capacity - adapter.prefix_length
    faults = tree.misfits(adapter.num_masks, backend.num_ranks, num_slots)
    raise_faults(TreeError, "the tree does not fit the engine", faults)
