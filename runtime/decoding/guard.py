"""Keep drafts from costing a text more than they gain.

Trees are chosen for the average of many texts, and some texts' drafts are hardly ever right. A
guard keeps accounts of one text in units of plain decode steps: the tokens that drafts gained (all
but the first of each step) minus the cost of their rows by the table's `costs`. Mask tokens have
one account, guesses from the text and the table another. Each starts with a credit and shows
whether its source pays. A third account sums all steps and limits the text's loss. The accounts
alone decide whether a step uses its state's tree, that tree without mask rows, or the root, so the
same prompt always takes the same steps. The constants were chosen by replay on bundled prompts
(docs/LOG.md, 2026-11-29).
"""

from dataclasses import dataclass, replace

from bita.tree import Tree
from bita.tree_table import Trees, TreeTable

NOTHING = -1  # no tree is picked
# The unit is a step of plain decoding, which emits one token.
MAX_LOSS = 3.0  # maximum loss of a text at its beginning
LOSS_A_TOKEN = 0.006  # growth of that maximum with each token of the answer
CREDIT = 2.0  # initial credit of each source, since it pays for texts on average
MAX_CREDIT = 3.0  # gains beyond this do not offset later losses
MAX_DEBT = 1.0  # limit for guesses that are only judged, so that a few right ones repay it
PROBE = 0.5  # credit of masks when they are tried again
FIRST_PAUSE = 32  # tokens until masks are tried again; each pause is twice as long as the last


@dataclass(frozen=True)
class _Choice:
    """A tree of the table and its substitutes; the numbers are indices of `GuardedTrees.trees`."""

    whole: int  # number of the tree
    lean: int  # number of the tree without mask rows
    root: int  # number of the root alone
    whole_loss: float  # cost of a step with `whole` beyond a plain one
    lean_loss: float  # cost of a step with `lean` beyond a plain one
    has_nodes: bool  # whether there are nodes besides the root
    has_masks: bool
    min_level: int  # minimum level of a guess on the spine; 0: there is no spine


class GuardedTrees:
    """The trees of a table with `costs`, and the smaller trees that a guard may substitute.

    trees: the table's trees, at their own numbers, then the others, each once.
    """

    def __init__(self, table: TreeTable) -> None:
        lean = [_without_masks(tree) for tree in table.trees]
        root = Tree.root_only()
        others = dict.fromkeys(tree for tree in (*lean, root) if tree not in table.trees)
        self.trees = (*table.trees, *others)
        # loss of a tree with one draft
        self.guess_loss = table.costs[min(2, len(table.costs)) - 1] - 1
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
    """The accounts of one text. Call `pick` before each step and `count` after it.

    judged_level: minimum level of a guess that is judged after the step although the picked tree
    does not contain it; 0 if no guess is judged.
    """

    def __init__(self, trees: GuardedTrees) -> None:
        self.judged_level = 0
        self._trees = trees
        self._choice = trees.choices[0]
        self._picked = NOTHING
        self._guesses = False
        self._gain = 0.0  # sum of all steps
        self._num_tokens = 0
        self._of_guesses = self._of_masks = CREDIT
        self._masks_from = 0  # tokens of the answer until masks are tried again
        self._pause = FIRST_PAUSE

    def pick(self, number: int, level: int, from_masks: bool = False) -> int:
        """Return the number of the next step's tree in `GuardedTrees.trees`.

        number: number of the state's tree in the table.
        level: confidence level of its guess.
        from_masks: whether only a mask token supports the guess.
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
        """Enter a step into the accounts, if a tree was picked for it.

        num_tokens: tokens that the step emitted.
        is_right: whether the first of them equals the guess's first; only used if `judged_level`
        is not 0.

        Returns whether the step's tree was smaller than the state's.
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
        """Add a gain of masks, or a negative cost; masks pause when their credit is spent."""
        self._of_masks = min(self._of_masks + gain, MAX_CREDIT)
        if self._of_masks < 0 and self._num_tokens >= self._masks_from:
            self._of_masks = PROBE
            self._masks_from = self._num_tokens + self._pause
            self._pause *= 2


def trees_to_run(trees: Trees) -> tuple[Tree, ...]:
    """Return every tree that decoding may use, not counting the root for a full cache."""
    table = TreeTable.of(trees)
    return GuardedTrees(table).trees if table.costs else table.trees


def sizes_to_run(trees: Trees) -> tuple[int, ...]:
    """Return the row counts of AR and of each tree that decoding may use."""
    return (1, *{tree.num_rows for tree in trees_to_run(trees)})


def _without_masks(tree: Tree) -> Tree:
    return replace(tree, num_masks=(0,) * tree.num_nodes)
