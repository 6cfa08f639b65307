"""Choose the trees of texts that share a step."""

from collections.abc import Sequence

from bita.runtime.backends.cache import Cache
from bita.runtime.decoding.bound_trees import ROOT_ONLY, PlacedTree
from bita.runtime.decoding.guard import GuardedTrees
from bita.runtime.decoding.rounds import PickedTree
from bita.runtime.decoding.row_choice import Gains, MaskGain, StepTimes, Wish, shared_rows
from bita.runtime.decoding.sequence import TokenSequence
from bita.runtime.decoding.tree_decoder import TreeDecoder
from bita.tree import MAX_LEVEL, Tree

MAX_CHAIN = 4  # length of a chain of guesses without masks, an alternative to a tree
# If a draft must be right more often than this to pay, masks do not pay: theirs rarely are.
MAX_MASK_SHARE = 0.4
UNKNOWN_SHARE = 0.4  # assumed share of right drafts where nothing is known
LATER_SHARE = 0.85  # share of right drafts after a right one, relative to the first

Picked = tuple[PickedTree[PlacedTree], int]


class JointTrees:
    """Picks the trees of a step, dividing rows among its texts by expected gain (`row_choice`).

    With a table without costs every text gets one row, since the cost of rows is unknown.
    """

    def __init__(self, decoder: TreeDecoder) -> None:
        table = decoder.table
        self._table = table
        self._place = decoder.place_trees()
        self._depth = max(tree.max_depth for tree in table.trees)
        self._times = StepTimes(table.costs) if table.costs else None
        guarded = GuardedTrees(table) if table.costs else None
        self._choices = guarded.choices if guarded else ()
        trees = guarded.trees if guarded else table.trees
        longest = min(self._depth, MAX_CHAIN)
        chains = [Tree.chain(depth, 0).with_guesses(1) for depth in range(1, longest + 1)]
        self._trees: tuple[Tree, ...] = (*trees, *chains)
        self._chains = range(len(trees), len(self._trees)) if table.uses_text else range(0)
        self._numbers = {tree: number for number, tree in enumerate(self._trees)}
        self._placed: dict[int, PlacedTree] = {}
        self._root = self._place(ROOT_ONLY)
        self._gains = Gains()
        self._masks = MaskGain()

    def pick(self, texts: Sequence[tuple[TokenSequence, Cache]]) -> list[Picked]:
        """Return a tree for each text, and the confidence level of its guess."""
        times = self._times
        if times is None or not texts:
            return [(PickedTree(self._root), 0) for _ in texts]
        least, wishes, levels = times.min_share(len(texts)), [], []
        for sequence, cache in texts:
            level, own = self._wishes(sequence, cache, least)
            wishes.append(own)
            levels.append(level)
        taken = shared_rows(wishes, times)
        return [
            (self._pick_tree(sequence, wish), level)
            for (sequence, _), wish, level in zip(texts, taken, levels, strict=True)
        ]

    def wants_masks(self, num_texts: int) -> bool:
        """Return whether masks may be worth their rows in a step of `num_texts` texts."""
        times = self._times
        return times is not None and times.min_share(num_texts) <= MAX_MASK_SHARE

    def enter_time(self, num_rows: int, step_ms: float) -> None:
        """Note the duration of a step in which all texts decode."""
        if self._times is not None:
            self._times.enter(num_rows, step_ms)

    def enter(self, picked: PickedTree[PlacedTree], level: int, had_masks: bool, gain: int) -> None:
        """Note a tree's gain for a text in tokens beyond one, with or without drafts of masks."""
        self._masks.enter(had_masks, gain)
        if picked.placed is not self._root:
            self._gains.enter(self._numbers[picked.placed.tree], level, gain)

    def _wishes(
        self, sequence: TokenSequence, cache: Cache, min_share: float
    ) -> tuple[int, list[Wish]]:
        """Return the confidence level of a text's guess, and the trees that may pay.

        There are none if the first draft is less likely to be right than `min_share`.
        """
        if sequence.is_plain:
            return 0, []
        forced = sequence.chooser.forced() if self._depth else []
        guesses = sequence.guesses
        level = MAX_LEVEL if forced else 0 if guesses is None else guesses.level()
        share = 1.0 if forced else guesses.share if guesses is not None else UNKNOWN_SHARE
        if share < min_share:
            return level, []
        choice = self._choices[self._table.number(sequence.drafts.num_masks, level)]
        numbers = {choice.whole, choice.lean}
        if forced or level:
            numbers.update(self._chains)
        room = cache.capacity - cache.num_slots_used
        wishes = []
        for number in numbers:
            tree = self._trees[number]
            has_masks = tree.num_rows > tree.num_nodes
            if has_masks and min_share > MAX_MASK_SHARE:
                continue
            if 1 < tree.num_rows <= room:
                gain = first = _expected(tree, share, len(forced))
                if not forced:
                    gain = self._gains.expected(number, level, first)
                if has_masks:
                    gain += self._masks.expected
                wishes.append(Wish(number, tree.num_rows, gain))
        return level, wishes

    def _pick_tree(self, sequence: TokenSequence, wish: Wish | None) -> PickedTree[PlacedTree]:
        if wish is None:
            return PickedTree(self._root)
        if wish.number not in self._placed:
            self._placed[wish.number] = self._place(self._trees[wish.number])
        placed = self._placed[wish.number]
        tree, guesses = placed.tree, sequence.guesses
        forced = sequence.chooser.forced()
        if forced:
            return PickedTree(placed, [[token] for token in forced[: tree.spine_length]])
        if guesses is None or not tree.min_level:
            return PickedTree(placed)
        found = guesses.candidates(tree.max_depth, tree.min_level)
        return PickedTree(placed, found, guesses.from_masks)


def _expected(tree: Tree, share: float, num_forced: int) -> float:
    """Return a tree's expected tokens beyond one, if its first draft is right with `share`."""
    if num_forced:
        return float(min(num_forced, tree.spine_length))
    expected, reached = 0.0, share
    for _ in range(tree.max_depth):
        expected += reached
        reached *= LATER_SHARE * share
    return expected
