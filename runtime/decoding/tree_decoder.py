"""Decode token sequences: prefill, then draft, verify, accept and commit in each step."""

from collections.abc import Callable, Sequence
from time import perf_counter
from warnings import warn

from bita.adapter import Adapter
from bita.errors import PromptError, PromptTooLongError, TreeError, raise_faults
from bita.json_values import shown
from bita.runtime.backends.backend import Backend, Step
from bita.runtime.backends.cache import Cache
from bita.runtime.backends.layout import prefill_layout
from bita.runtime.backends.page_pool import PagesInUseError
from bita.runtime.decoding.bound_trees import Binder, BoundTree, BoundTrees, PlacedTree
from bita.runtime.decoding.chooser import GREEDY, AnyChooser
from bita.runtime.decoding.drafting import Drafts
from bita.runtime.decoding.guard import Guard, GuardedTrees
from bita.runtime.decoding.guesses import make_guesses
from bita.runtime.decoding.places import Places
from bita.runtime.decoding.prefill import Prefill, run_piece, text_steps
from bita.runtime.decoding.rounds import PickedTree, finish_round
from bita.runtime.decoding.sequence import TokenSequence
from bita.runtime.decoding.shared_cache import SharedCache
from bita.runtime.decoding.soundness import UnsoundError, run_soundly
from bita.runtime.decoding.stats import Stats
from bita.tree import MAX_LEVEL, Tree
from bita.tree_table import Trees, TreeTable

Record = Callable[[str, float, float, int], None]


class TreeDecoder:
    """Decodes token sequences, one step at a time, over preallocated buffers.

    The caller of a step holds the engine lock.

    Args:
        backend: Backend that executes the steps.
        adapter: Adapter whose mask tokens and prefix produce the drafts.
        trees: One tree, or a table with a tree for each state. `Tree.root_only()` decodes plainly
            (AR). With a table that has costs, a text gets smaller trees where its drafts do not
            pay.
        mode: "tree" accepts every node. "exact" accepts nodes whose rows are bit-identical to
            plain decoding: all nodes if the backend has exact trees, else those of the spine.
        min_rows: Rows of the smallest step. 2 makes AR bit-identical to exact tree decoding,
            because kernels for one row sum in a different order; 1 is fastest.
        shared_cache: Cache shared with other decoders on this backend. None: a new one.
        places: Places of texts that are decoded together; a text that continues alone is moved
            back to the backend's own cache.

    Attributes:
        record: Called after each phase of a step with the phase's name, its begin and end in
            seconds of `perf_counter`, and the rows of the step; or None.

    Raises:
        TreeError: if a tree does not fit.
    """

    def __init__(
        self,
        backend: Backend,
        adapter: Adapter,
        trees: Trees,
        mode: str,
        min_rows: int,
        shared_cache: SharedCache | None = None,
        places: Places | None = None,
    ) -> None:
        _check_fit(trees, adapter, backend)
        self.trees = trees
        self.adapter = adapter
        self.mode = mode
        self.shared_cache = shared_cache or SharedCache(backend.cache)
        self.stats = Stats()
        self.record: Record | None = None
        self._places = places
        self._backend = backend
        self._cache = backend.cache
        self._min_rows = min_rows
        self.table = TreeTable.of(trees)
        self._guarded = GuardedTrees(self.table) if self.table.costs else None
        self._accepts_branches = mode == "tree" or backend.exact_trees
        self._depth = max(tree.max_depth for tree in self.table.trees)
        self._pairs = backend.pairs.tables(adapter)
        self._bound = self._bind_all(with_logits=False)
        self._bound_with_logits: BoundTrees | None = None
        bind = text_steps(backend, adapter, min_rows)
        self._prefill = Prefill(backend.cache, backend.prefill_rows, bind)

    @property
    def max_prompt_tokens(self) -> int:
        """Length of the longest prompt that leaves room for a step."""
        num_slots = self._bound.narrow.step.num_slots
        return self._cache.capacity - self.adapter.prefix_length - num_slots

    @property
    def prefill_rows(self) -> int:
        """Maximum number of prompt tokens in a step."""
        return self._backend.prefill_rows

    @property
    def steps(self) -> list[Step]:
        """The bound steps of the table's trees, as greedy decoding uses them."""
        return [bound.step for bound in self._bound.ready]

    def is_full(self, sequence: TokenSequence) -> bool:
        """Return whether the cache lacks room for another step of a sequence."""
        return sequence.has_answer and len(sequence.token_ids) - 1 > self.max_prompt_tokens

    def check_prompt(self, token_ids: Sequence[int]) -> None:
        """Raise PromptError if a prompt is empty, too long, or contains an id outside [0, V)."""
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
                f"token ids must be in [0, {self._backend.vocab_size}); "
                f"the prompt has {shown(low if low < 0 else high)}"
            )

    def begin(self, prompt_ids: Sequence[int], chooser: AnyChooser = GREEDY) -> TokenSequence:
        """Return a new sequence with this prompt. Raises PromptError as `check_prompt` does."""
        self.check_prompt(prompt_ids)
        num_masks = max(self._depth, self.adapter.num_masks)
        table, bonuses = self.adapter.continuations, self.adapter.bonuses
        drafts = Drafts(num_masks, self._backend.num_ranks, self._pairs)
        guesses = make_guesses(table, bonuses, drafts) if self.table.uses_text else None
        guard = Guard(self._guarded) if self._guarded else None
        return TokenSequence(prompt_ids, drafts, guesses, chooser, guard)

    def step(self, sequence: TokenSequence) -> list[int]:
        """Run the next step of a sequence and return the tokens that it emitted.

        The last piece of a prompt emits one token, earlier pieces emit none. A draft-verify round
        emits 1 to depth + 1 tokens. Rows that the cache has lost to another sequence are recomputed
        in pieces that emit nothing and leave `sequence.num_read` unchanged. Raises EngineError if
        the model's logits are not finite.
        """
        num_tokens = len(sequence.token_ids)
        self._take_step(sequence)
        sequence.num_read = max(sequence.num_read, self._cache.length)
        return sequence.token_ids[num_tokens:]

    def _take_step(self, sequence: TokenSequence) -> Step:
        """Run the next step of a sequence; if it overflows, repeat it without drafts."""
        try:
            return self._next_step(sequence)
        except UnsoundError:
            is_first = not sequence.is_plain
            sequence.is_plain = True
            self._cache.clear_around_text()
        step = self._next_step(sequence)
        if is_first:
            warn_of_overflow()
        return step

    def _next_step(self, sequence: TokenSequence) -> Step:
        try:
            return self._step_alone(sequence)
        except PagesInUseError:
            if self._places is None or not self._places.release_others([sequence]):
                raise
        return self._step_alone(sequence)

    def _step_alone(self, sequence: TokenSequence) -> Step:
        began = perf_counter()
        missing = self._missing(sequence)
        if sequence.has_answer and len(missing) == 1:
            return self._advance(sequence, began)
        return self._read(sequence, missing, began)

    def margin(self, token_ids: Sequence[int]) -> float:
        """Return the difference between the best and the second-best logit after these tokens."""
        sequence = self.begin(token_ids)
        sequence.is_wanted = False
        while not sequence.has_answer:
            end = self._take_step(sequence)
        return float(end.top_logits[0, 0] - end.top_logits[0, 1])

    def _missing(self, sequence: TokenSequence) -> list[int]:
        """Give a sequence the cache, and return its tokens that are not cached yet."""
        if self._places is not None and self.shared_cache.holder is not sequence:
            self._places.bring_home(sequence)
        self.shared_cache.take(sequence, self.adapter)
        self.note_begun(sequence, self._cache.length)
        return sequence.token_ids[self._cache.length :]

    def note_begun(self, sequence: TokenSequence, num_cached: int) -> None:
        """Count a prompt when it is begun, with `num_cached` of its tokens in the cache."""
        if sequence.num_reused is None:
            sequence.num_reused = num_cached
            self.stats.count_prompt(sequence.num_prompt_tokens, num_cached)

    def num_first_masks(self, sequence: TokenSequence, cache: Cache, num_tokens: int) -> int:
        """Return the number of masks after a prompt's last piece, which has `num_tokens` tokens."""
        room = cache.capacity - cache.num_slots_used - num_tokens
        return 0 if sequence.is_plain else min(self.table.max_masks, room)

    def place_trees(self) -> Callable[[Tree], PlacedTree]:
        """Return a function that places trees for shared steps; it does not hold the decoder."""
        return self._binder(with_logits=False).placed

    def _read(self, sequence: TokenSequence, missing: list[int], began: float) -> Step:
        """Read a piece of the missing tokens.

        At the prompt's end, the first output row gives the token that follows.
        """
        if sequence.has_answer or len(missing) > self._backend.prefill_rows:
            missing = missing[:-1][: self._backend.prefill_rows]
            step = self._prefill.read(missing)
        else:
            step = self._read_end(sequence, missing)
            sequence.extend([sequence.chooser.choices(step)(0)])
        ended = perf_counter()
        self.stats.prefill_ms += 1000 * (ended - began)
        if self.record is not None:
            self.record("prefill", began, ended, len(missing))
        return step

    def _advance(self, sequence: TokenSequence, began: float) -> Step:
        """Run a draft-verify round."""
        picked = self.pick_tree(sequence)
        step, tree = picked.placed.step, picked.placed.tree
        nodes = step.token_ids[0, : tree.num_nodes]
        picked.fill(nodes, sequence)
        ran = perf_counter()
        run_soundly(step, self._cache.length)
        returned = perf_counter()
        path, emitted = finish_round(picked, nodes.tolist(), sequence, self._cache, step)
        if sequence.guard is not None:
            guess = picked.guess
            is_right = bool(guess) and guess[0][0] == emitted[0]
            is_smaller = sequence.guard.count(len(emitted), is_right)
            self.stats.num_guarded_steps += is_smaller
        ended = perf_counter()
        sequence.count_step(ended - began)
        step_ms, backend_ms = 1000 * (ended - began), 1000 * (returned - ran)
        self.stats.count_step(step_ms, backend_ms, step.num_rows)
        self.stats.count_path(path, picked.num_guesses)
        if self.record is not None:
            self.record("draft", began, ran, step.num_rows)
            self.record("backend", ran, returned, step.num_rows)
            self.record("accept and commit", returned, ended, step.num_rows)
        return step

    def pick_tree(self, sequence: TokenSequence) -> PickedTree[BoundTree]:
        """Return the tree of a sequence's next round.

        It is the tree of the sequence's state, a smaller one if the guard says so, or the root if
        the cache has no room. If the guard judges a guess that the smaller tree does not contain,
        the guess is one token longer than the tree's spine.
        """
        trees, guard = self._bound_trees(sequence.chooser.needs_logits), sequence.guard
        if sequence.is_plain:
            return PickedTree(trees.narrow)
        forced = sequence.chooser.forced() if self._depth else []
        level = 0 if sequence.guesses is None else sequence.guesses.level()
        number = self.table.number(sequence.drafts.num_masks, MAX_LEVEL if forced else level)
        bound = trees[number]
        if self._cache.num_slots_used + bound.step.num_slots > self._cache.capacity:
            return PickedTree(trees.narrow)
        if forced:
            return PickedTree(bound, [[token] for token in forced[: bound.tree.spine_length]])
        guesses = sequence.guesses
        from_masks = guesses is not None and guesses.from_masks
        if guard is not None:
            bound = trees[guard.pick(number, level, from_masks)]
            if guard.judged_level and guesses is not None:
                return PickedTree(bound, guesses.candidates(1, guard.judged_level))
        tree = bound.tree
        if guesses is None or not tree.min_level:
            return PickedTree(bound)
        found = guesses.candidates(tree.max_depth, tree.min_level)
        return PickedTree(bound, found, from_masks)

    def _bound_trees(self, with_logits: bool) -> BoundTrees:
        if not with_logits:
            return self._bound
        if self._bound_with_logits is None:
            self._bound_with_logits = self._bind_all(with_logits=True)
        return self._bound_with_logits

    def _bind_all(self, with_logits: bool) -> BoundTrees:
        trees = self._guarded.trees if self._guarded else self.table.trees
        return BoundTrees(trees, len(self.table.trees), self._binder(with_logits))

    def _binder(self, with_logits: bool) -> Binder:
        return Binder(
            *(self._backend, self.adapter, self._pairs, self._min_rows, with_logits),
            self._accepts_branches,
        )

    def _read_end(self, sequence: TokenSequence, tokens: Sequence[int]) -> Step:
        """Read the last piece of the prompt, with the first mask group after it."""
        num_masks = self.num_first_masks(sequence, self._cache, len(tokens))
        layout = prefill_layout(len(tokens), num_masks, self._min_rows)
        step = self._backend.bind(layout, self.adapter, sequence.chooser.needs_logits)
        run_piece(step, self._cache, tokens)
        masks = slice(1, 1 + num_masks)
        sequence.drafts.read(step.top_ids[masks], step.top_logits[masks])
        return step


def warn_of_overflow() -> None:
    """Warn that a text is decoded without drafts."""
    warn(
        "the adapter makes the model's values overflow: this text is decoded without drafts; tune "
        "another adapter",
        RuntimeWarning,
        stacklevel=3,
    )


def _check_fit(trees: Trees, adapter: Adapter, backend: Backend) -> None:
    num_slots = backend.cache.capacity - adapter.prefix_length
    faults = trees.misfits(adapter.num_masks, backend.num_ranks, num_slots)
    raise_faults(TreeError, "the tree does not fit the engine", faults)
