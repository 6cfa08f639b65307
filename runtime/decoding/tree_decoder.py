"""The decode round on token ids: prefill, then draft, verify, accept and commit in one step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from bita.adapter import Adapter
from bita.errors import PromptError, PromptTooLongError, TreeError, raise_faults
from bita.runtime.backends.backend import Backend, Step
from bita.runtime.backends.layout import prefill_layout, tree_layout
from bita.runtime.decoding.chooser import Chooser
from bita.runtime.decoding.drafting import Drafter, Drafts, accept, spine_children
from bita.runtime.decoding.ngrams import NgramIndex
from bita.runtime.decoding.sequence import DecodedText
from bita.runtime.decoding.shared_cache import CachedTexts
from bita.runtime.decoding.stats import Stats
from bita.tree import MAX_MATCH, Tree
from bita.tree_table import Trees, TreeTable

ROOT_ONLY = Tree.root_only()
Record = Callable[[str, float, float, int], None]


class TreeDecoder:
    """Decodes texts, a step at a time, over preallocated buffers.

    trees: one, or one for each state; Tree.root_only() decodes plainly (AR). mode: "exact" accepts
    along the spine only, "tree" accepts every node. min_rows: 2 makes AR bit-identical to exact
    tree decoding (kernels for one row sum in another order), 1 is fastest. texts: what decoders on
    one backend share; whoever calls holds its lock. Raises TreeError if a tree does not fit.

    record: None, or called with each part of a step: its name, when it began and ended in seconds
    of `perf_counter`, and the rows of the step.
    """

    def __init__(
        self,
        backend: Backend,
        adapter: Adapter,
        trees: Trees,
        mode: str,
        min_rows: int,
        texts: CachedTexts | None = None,
    ) -> None:
        _check_fit(trees, adapter, backend)
        self.trees = trees
        self.adapter = adapter
        self.mode = mode
        self.texts = texts or CachedTexts(backend.cache)
        self.stats = Stats()
        self.record: Record | None = None
        self._backend = backend
        self._cache = backend.cache
        self._min_rows = min_rows
        self._table = TreeTable.of(trees)
        self._depth = max(tree.max_depth for tree in self._table.trees)
        self._pairs = backend.pairs.tables(adapter)
        self._bound = self._bind_all(with_logits=False)
        self._bound_with_logits: _BoundTrees | None = None
        self._full_prefill: Step | None = None
        self._margin = 0.0

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that leaves room for a step."""
        num_slots = self._bound.narrow.step.num_slots
        return self._cache.capacity - self.adapter.prefix_length - num_slots

    def is_full(self, text: DecodedText) -> bool:
        """Whether the cache has no room for another step of a text."""
        return text.has_answer and len(text.token_ids) - 1 > self.max_prompt_tokens

    def check_prompt(self, token_ids: Sequence[int]) -> None:
        """Raise PromptError if a prompt is empty, too long, or holds an id outside [0, V)."""
        if not len(token_ids):
            raise PromptError("the prompt is empty; give at least one token")
        if len(token_ids) > self.max_prompt_tokens:
            raise PromptTooLongError(
                f"the prompt has {len(token_ids)} tokens; this engine holds "
                f"{self.max_prompt_tokens}: shorten it, or rebuild with a larger CAPACITY"
            )
        low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= self._backend.vocab_size:
            raise PromptError(
                f"token ids must lie in [0, {self._backend.vocab_size}); "
                f"the prompt has {low if low < 0 else high}"
            )

    def begin(self, prompt_ids: Sequence[int], chooser: Chooser | None = None) -> DecodedText:
        """A text whose prompt is to be read. Raises PromptError as `check_prompt` does."""
        self.check_prompt(prompt_ids)
        num_masks = max(self._depth, self.adapter.num_masks)
        drafts = Drafts(num_masks, self._backend.num_ranks)
        ngrams = NgramIndex() if self._table.uses_text else None
        return DecodedText(prompt_ids, drafts, ngrams, chooser)

    def step(self, text: DecodedText) -> list[int]:
        """Run the step that a text needs next and return the tokens that it emitted.

        A piece of the prompt that is not its last emits nothing, the last one a token, a
        draft-verify round 1 to depth + 1. What the cache lost of the text to another one is
        computed again, in pieces that emit nothing.
        """
        began = perf_counter()
        self.texts.take(text, self.adapter)
        if text.num_reused is None:
            text.num_reused = self._cache.length
            self.stats.count_prompt(text.num_prompt_tokens, text.num_reused)
        missing = text.token_ids[self._cache.length :]
        if text.has_answer and len(missing) == 1:
            return self._advance(text, began)
        emitted: list[int] = []
        if text.has_answer or len(missing) > self._backend.prefill_rows:
            missing = missing[:-1][: self._backend.prefill_rows]
            self._prefill_piece(missing)
        else:
            emitted.append(self._prefill_end(text, missing))
            text.extend(emitted)
        ended = perf_counter()
        self.stats.prefill_ms += 1000 * (ended - began)
        if self.record is not None:
            self.record("prefill", began, ended, len(missing))
        return emitted

    def margin(self, token_ids: Sequence[int]) -> float:
        """How far the best logit behind these tokens is above the second."""
        text = self.begin(token_ids)
        text.is_wanted = False
        while not self.step(text):
            pass
        return self._margin

    def _advance(self, text: DecodedText, began: float) -> list[int]:
        """One draft-verify round."""
        bound, guess = self._bound_now(text)
        tree, step = bound.tree, bound.step
        nodes = step.token_ids[0, : tree.num_nodes]
        nodes[0] = text.root
        bound.drafter.fill(nodes, text.drafts, guess)
        ran = perf_counter()
        step.run()
        returned = perf_counter()
        tokens = nodes.tolist()
        path, bonus = _accepted(bound, tokens, text.chooser)
        self._cache.commit(path)
        group = bound.groups[path[-1]]
        text.drafts.read(step.top_ids[group], step.top_logits[group])
        emitted = [*(tokens[node] for node in path[1:]), bonus]
        text.extend(emitted)
        ended = perf_counter()
        self.stats.count_step(
            tree.paths[path[-1]], len(emitted), 1000 * (ended - began), 1000 * (returned - ran)
        )
        if self.record is not None:
            self.record("draft", began, ran, step.num_rows)
            self.record("backend", ran, returned, step.num_rows)
            self.record("accept and commit", returned, ended, step.num_rows)
        return emitted

    def _bound_now(self, text: DecodedText) -> "tuple[_BoundTree, list[int]]":
        """The state's tree, or the root where the cache has no room for it, and what the spine
        takes instead of mask drafts.
        """
        trees = self._trees_for(text)
        forced = text.chooser.forced() if text.chooser and self._depth else []
        match = 0 if text.ngrams is None else text.ngrams.match_length()
        state = MAX_MATCH if forced else match
        bound = trees.bound[self._table.number(text.drafts.num_masks, state)]
        if self._cache.num_slots_used + bound.step.num_slots > self._cache.capacity:
            return trees.narrow, []
        tree = bound.tree
        if forced or text.ngrams is None or not tree.min_match:
            return bound, forced[: tree.spine_length]
        return bound, text.ngrams.guess(tree.spine_length, tree.min_match)

    def _trees_for(self, text: DecodedText) -> "_BoundTrees":
        if text.chooser is None:
            return self._bound
        if self._bound_with_logits is None:
            self._bound_with_logits = self._bind_all(with_logits=True)
        return self._bound_with_logits

    def _bind_all(self, with_logits: bool) -> "_BoundTrees":
        bound = [self._bind(tree, with_logits) for tree in self._table.trees]
        return _BoundTrees(bound, self._bind(ROOT_ONLY, with_logits))

    def _bind(self, tree: Tree, with_logits: bool) -> "_BoundTree":
        return _BoundTree(
            tree,
            self._backend.bind(tree_layout(tree, self._min_rows), self.adapter, with_logits),
            Drafter(tree, self._pairs),
            spine_children(tree) if self.mode == "exact" else tree.children,
            tuple(slice(group.start, group.stop) for group in tree.groups),
        )

    def _prefill_piece(self, tokens: Sequence[int]) -> None:
        is_full = len(tokens) == self._backend.prefill_rows
        if is_full and self._full_prefill is not None:
            step = self._full_prefill
        else:
            layout = prefill_layout(len(tokens), 0, self._min_rows)
            step = self._backend.bind(layout, self.adapter)
        if is_full:
            self._full_prefill = step
        step.token_ids[0, : len(tokens)] = tokens
        step.run()
        self._cache.length += len(tokens)

    def _prefill_end(self, text: DecodedText, tokens: Sequence[int]) -> int:
        """The last piece of the prompt with the first mask group behind it."""
        room = self._cache.capacity - self._cache.num_slots_used - len(tokens)
        num_masks = min(self._table.max_masks, room)
        layout = prefill_layout(len(tokens), num_masks, self._min_rows)
        step = self._backend.bind(layout, self.adapter, with_logits=text.chooser is not None)
        step.token_ids[0, : len(tokens)] = tokens
        step.run()
        self._cache.length += len(tokens)
        masks = slice(1, 1 + num_masks)
        text.drafts.read(step.top_ids[masks], step.top_logits[masks])
        self._margin = float(step.top_logits[0, 0] - step.top_logits[0, 1])
        return _chooses(step, text.chooser)(0)


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


@dataclass(frozen=True, eq=False)
class _BoundTrees:
    """Those of the table. narrow: the root alone."""

    bound: list[_BoundTree]
    narrow: _BoundTree


def _accepted(
    bound: _BoundTree, tokens: Sequence[int], chooser: Chooser | None
) -> tuple[list[int], int]:
    """The path that the step's rows agree with, and its bonus token."""
    choose = _chooses(bound.step, chooser)
    if chooser is None:
        return accept(bound.children, tokens, choose)
    return accept(bound.children, tokens, choose, lambda: chooser.has_ended)


def _chooses(step: Step, chooser: Chooser | None) -> Callable[[int], int]:
    """The token behind an output row of the step: the best one, or the chooser's."""
    if chooser is None:
        best: list[int] = step.top_ids[:, 0].tolist()
        return best.__getitem__
    logits = step.logits
    assert logits is not None
    return lambda row: chooser.choose(logits[row])


def _check_fit(trees: Trees, adapter: Adapter, backend: Backend) -> None:
    num_slots = backend.cache.capacity - adapter.prefix_length
    faults = trees.misfits(adapter.num_masks, backend.num_ranks, num_slots)
    raise_faults(TreeError, "the tree does not fit the engine", faults)
