"""Keeps drafts from costing a text more than they give it.

Trees are chosen for the mean of many texts, and there are texts whose drafts are hardly ever right.
A guard keeps accounts of one text, in steps of plain decoding: what drafts gave it, the tokens
beyond the first of each step, less what their rows cost by the table's `costs`. The masks and the
guesses of text and table have an account each, which begins with a credit and says whether that
source pays; a third holds the sum of all steps, which bounds what the text may lose. From them
alone follows whether a step takes its state's tree, the same without mask rows, or the root, so the
same prompt always takes the same steps. The constants were chosen by replay on bundled prompts
(docs/LOG.md, 2026-11-29).
"""

from dataclasses import dataclass, replace

from bita.tree import Tree
from bita.tree_table import Trees, TreeTable

NOTHING = -1  # is picked
# in steps of plain decoding, each of which gives a token
MAX_LOSS = 3.0  # of a text at its beginning
LOSS_A_TOKEN = 0.006  # by which it may grow with each token of the answer
CREDIT = 2.0  # of each source at the beginning: what all texts together say of it
MAX_CREDIT = 3.0  # what a source gained beyond this is not held against later losses
MAX_DEBT = 1.0  # of guesses that are only judged, which some right guesses make up for
PROBE = 0.5  # credit of masks that are tried again
FIRST_PAUSE = 32  # tokens until masks are tried again; each pause is twice as long as the last


@dataclass(frozen=True)
class _Choice:
    """What a guard may take instead of one tree of the table.

    whole, lean, root: numbers of the tree, of it without mask rows, and of the root alone, in
    `GuardedTrees.trees`. whole_loss, lean_loss: what a step with them costs beyond a plain one.
    min_level: of a spine that may hold a guess, else 0.
    """

    whole: int
    lean: int
    root: int
    whole_loss: float
    lean_loss: float
    has_nodes: bool
    has_masks: bool
    min_level: int


class GuardedTrees:
    """The trees of a table with `costs`, and those that a guard may take instead of them.

    trees: the table's, at their own numbers; then the others, none of them twice.
    """

    def __init__(self, table: TreeTable) -> None:
        lean = [_without_masks(tree) for tree in table.trees]
        root = Tree.root_only()
        others = dict.fromkeys(tree for tree in (*lean, root) if tree not in table.trees)
        self.trees = (*table.trees, *others)
        self.guess_loss = table.costs[min(2, len(table.costs)) - 1] - 1  # of a tree of one draft
        number = {tree: n for n, tree in reversed([*enumerate(self.trees)])}
        self.choices = tuple(
            _Choice(
                whole=n,
                lean=number[lean[n]],
                root=number[root],
                whole_loss=table.costs[tree.num_rows - 1] - 1,
                lean_loss=table.costs[tree.num_nodes - 1] - 1,
                has_nodes=tree.num_nodes > 1,
                has_masks=tree.num_rows > tree.num_nodes,
                min_level=tree.min_level if tree.spine_length else 0,
            )
            for n, tree in enumerate(table.trees)
        )


class Guard:
    """The accounts of one text. `pick` comes before each step, and `count` after it.

    judged_level: that a guess needs, to be judged after the step though the picked tree does not
    hold it; 0 where there is none to judge.
    """

    def __init__(self, trees: GuardedTrees) -> None:
        self.judged_level = 0
        self._trees = trees
        self._choice = trees.choices[0]
        self._picked = NOTHING
        self._guesses = False
        self._gain = 0.0  # of all steps
        self._num_tokens = 0
        self._of_guesses = self._of_masks = CREDIT
        self._masks_from = 0  # tokens of the answer until masks are tried again
        self._pause = FIRST_PAUSE

    def pick(self, number: int, level: int, from_masks: bool = False) -> int:
        """The number in `GuardedTrees.trees` of what the next step takes.

        number: of the state's tree in the table. level: how sure its guess is. from_masks: whether
        that is a mask's draft, which nothing else says.
        """
        choice = self._choice = self._trees.choices[number]
        guesses = self._guesses = 0 < choice.min_level <= level and not from_masks
        picked = choice.root
        if not guesses or self._of_guesses >= 0:
            to_lose = self._gain + MAX_LOSS + LOSS_A_TOKEN * self._num_tokens
            wants_masks = self._num_tokens >= self._masks_from
            if choice.whole_loss <= to_lose and (wants_masks or not choice.has_masks):
                picked = choice.whole
            elif choice.lean_loss <= to_lose:
                picked = choice.lean
        self._picked = picked
        self.judged_level = choice.min_level if guesses and picked == choice.root else 0
        return picked

    def count(self, num_tokens: int, is_right: bool) -> bool:
        """Enter a step into the accounts. num_tokens: that it emitted.

        is_right: whether the first of them is what the guess began with; it counts where
        `judged_level` asks for it. Returns whether the step's tree was smaller than the state's. A
        step that nothing was picked for is not entered.
        """
        choice, picked, self._picked = self._choice, self._picked, NOTHING
        if picked == NOTHING:
            return False
        self._num_tokens += num_tokens
        if picked == choice.root != choice.whole:
            if self._guesses:
                self._enter_guesses(is_right - self._trees.guess_loss)
            return True
        gain = num_tokens - 1 - choice.lean_loss
        rows_loss = choice.whole_loss - choice.lean_loss if picked == choice.whole else 0.0
        self._gain += gain - rows_loss
        if self._guesses:
            self._enter_guesses(gain)
        elif choice.has_nodes:
            self._enter_masks(gain)
        if rows_loss:
            self._enter_masks(-rows_loss)
        return picked != choice.whole

    def _enter_guesses(self, gain: float) -> None:
        self._of_guesses = max(min(self._of_guesses + gain, MAX_CREDIT), -MAX_DEBT)

    def _enter_masks(self, gain: float) -> None:
        """Add what masks gave, or take their cost; they pause when their credit is spent."""
        self._of_masks = min(self._of_masks + gain, MAX_CREDIT)
        if self._of_masks < 0 and self._num_tokens >= self._masks_from:
            self._of_masks = PROBE
            self._masks_from = self._num_tokens + self._pause
            self._pause *= 2


def trees_to_run(trees: Trees) -> tuple[Tree, ...]:
    """Every tree that decoding with these may take, the root for a full cache aside."""
    table = TreeTable.of(trees)
    return GuardedTrees(table).trees if table.costs else table.trees


def sizes_to_run(trees: Trees) -> tuple[int, ...]:
    """Rows of AR and of each tree that decoding with these may take."""
    return (1, *{tree.num_rows for tree in trees_to_run(trees)})


def _without_masks(tree: Tree) -> Tree:
    return replace(tree, num_masks=(0,) * tree.num_nodes)
