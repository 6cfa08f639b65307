"""The trees by state that give the most tokens per millisecond together.

Policy iteration (Howard) on the replay itself: what the rest of a text is worth from each of its
positions, with each number of masks drafted, follows from the trees there are; and the best tree of
a state, given these worths, is a knapsack on the tree of all paths, with rows as weights. A tree is
taken if the whole replay gets faster, and if trees made from one half of the texts are better on
the other half.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from bita.calibration.acceptance import Acceptance
from bita.calibration.knapsack import Floats, Knapsack
from bita.calibration.replay import accept_freely, cut_to_node, find_end_nodes, max_end_rank
from bita.tree import MAX_MATCH, Path, Tree
from bita.tree_table import Trees, TreeTable

State = tuple[int, int]  # masks drafted, number of the match
LEAST_STEPS = 40  # that a state is judged by; fewer are put together with those of other masks
LEAST_POSITIONS = 80  # with a length of match, for it to be a state of its own
PRIOR = 20  # steps of the state that all steps elsewhere count as
SWEEPS = 2  # over all states, at most
LEAST_GAIN = 1.001  # of the replay's speed, for a tree to be taken
LEAST_PATHS = 48  # that are looked at, the likeliest of a state; else as many as rows


def best_table(
    acceptance: Acceptance,
    times: Sequence[float],
    num_masks: int,
    mode: str,
    start: Trees,
    uses_text: bool = True,
) -> Trees:
    """Trees by state, faster by replay than those to start from; these if there are none.

    times: T(1), T(2), ... in milliseconds, up to the most rows that a tree may have. mode: "exact"
    knows paths along the spine only. uses_text: whether drafts may come from the text so far.
    """
    search = _Search(acceptance, times, num_masks, mode, TreeTable.of(start), uses_text)
    first = search.speed
    for _ in range(SWEEPS):
        before = search.speed
        for state in search.states:
            search.improve(state)
        if search.speed < before * LEAST_GAIN:
            break
    return search.table() if search.speed >= first * LEAST_GAIN else start


class _Free:
    """What steps with the drafts of so many masks accept in a tree of all paths.

    paths: that occur. number [n]: of each position's. prefixes [N]: of these paths, the root first.
    through [N, paths]: 1.0 where a path goes through a prefix.
    """

    def __init__(self, accepted: Sequence[Path]) -> None:
        numbers = {path: n for n, path in enumerate(dict.fromkeys(accepted))}
        self.paths = tuple(numbers)
        self.number = np.array([numbers[path] for path in accepted])
        known = {path[:depth] for path in self.paths for depth in range(len(path) + 1)}
        self.prefixes = sorted(known, key=lambda path: (len(path), path))
        self.depths = np.array([len(path) for path in self.prefixes])
        place = {path: n for n, path in enumerate(self.prefixes)}
        self.through = np.zeros((len(known), len(self.paths)))
        for n, path in enumerate(self.paths):
            self.through[[place[path[:depth]] for depth in range(len(path) + 1)], n] = 1

    def sums(self, values: Floats) -> Floats:
        """[N]: of values [n], one for each position, by prefix."""
        return np.asarray(
            self.through @ np.bincount(self.number, values, len(self.paths)), np.float64
        )


@dataclass(frozen=True, eq=False)
class _Ends:
    """Where the steps of a tree end: places and masks, lists by masks drafted and position."""

    milliseconds: float
    next_place: list[list[int]]
    next_masks: list[list[int]]


class _Search:
    """The trees of all states, and what they make of the texts, one behind the other."""

    def __init__(
        self,
        acceptance: Acceptance,
        times: Sequence[float],
        num_masks: int,
        mode: str,
        start: TreeTable,
        uses_text: bool,
    ) -> None:
        self._num_masks, self._mode = num_masks, mode
        self._most_paths = max(LEAST_PATHS, len(times))
        positions, lengths = [*acceptance.positions()], [*map(len, acceptance.texts)]
        self._end = np.repeat(np.cumsum(lengths), lengths)  # of each position's text
        self._text = np.repeat(np.arange(len(lengths)), lengths)
        self._times = np.maximum.accumulate(times)
        most = max_end_rank(acceptance, mode)
        self._free: dict[tuple[int, bool], _Free] = {}
        for drafted, guesses in product(range(num_masks + 1), (False, True)):
            self._free[drafted, guesses] = _Free(
                [accept_freely(p, drafted, int(guesses), most) for p in positions]
            )
        self._uses_text = uses_text
        self._matches = _levels([position.match for position in positions]) if uses_text else (0,)
        found = np.searchsorted(self._matches, [position.match for position in positions], "right")
        self._level: list[int] = (found - 1).tolist()
        self.states = [*product(range(num_masks + 1), range(len(self._matches)))]
        self._known_ends: dict[Tree, _Ends] = {}
        self._trees = {
            (d, m): start.trees[start.number(d, self._matches[m])] for d, m in self.states
        }
        self._look()

    def improve(self, state: State) -> None:
        """Give a state the best tree for it, with guesses or without, if that gains something."""
        places, visited = self._steps_of(state)
        # a match of 0 tokens has no guess
        may_guess = self._uses_text and (len(self._matches) == 1 or state[1] > 0)
        for guesses in (False, True)[: may_guess + 1] if places else ():
            everywhere = [place for place, _ in self._visits]
            found = self._best_tree(state[0], guesses, places, everywhere)
            if found == self._trees[state] or self._gain(state, guesses, places) <= 0:
                continue
            kept, speed = self._trees, self.speed
            self._trees = {**self._trees, state: found}
            self._look()
            if self.speed < speed * (LEAST_GAIN if visited else 1):
                self._trees = kept
                self._look()

    def _look(self) -> None:
        """Replay: the steps that are taken, and the speed, in tokens per millisecond."""
        ends_of = {state: self._ends(tree) for state, tree in self._trees.items()}
        first = min(max(tree.max_masks for tree in self._trees.values()), self._num_masks)
        level, ends, num = self._level, self._end.tolist(), len(self._level)
        self._visits: list[tuple[int, int]] = []  # place, masks drafted
        spent, place = 0.0, 0
        while place < num:
            drafted, end = first, ends[place]
            while place < end:
                self._visits.append((place, drafted))
                step = ends_of[drafted, level[place]]
                spent += step.milliseconds
                there = step.next_place[drafted][place]
                drafted, place = step.next_masks[drafted][place], there
        self.speed = num / spent
        self._worth: Floats | None = None

    def _worths(self) -> Floats:
        """[n, M + 1]: tokens to come in the text, less those that their time is worth."""
        if self._worth is None:
            ends_of = {state: self._ends(tree) for state, tree in self._trees.items()}
            cost = {state: self.speed * step.milliseconds for state, step in ends_of.items()}
            level, ends = self._level, self._end.tolist()
            worth: list[list[float]] = [[] for _ in level]
            for place in range(len(level) - 1, -1, -1):
                for drafted in range(self._num_masks + 1):
                    state = drafted, level[place]
                    there = ends_of[state].next_place[drafted][place]
                    value = there - place - cost[state]
                    if there < ends[place]:
                        value += worth[there][ends_of[state].next_masks[drafted][place]]
                    worth[place].append(value)
            self._worth = np.array(worth)
        return self._worth

    def _steps_of(self, state: State) -> tuple[list[int], bool]:
        """Roots of the steps in a state, with those of other masks if they are few; and whether
        there are any.
        """
        drafted, match = state
        like = [(place, masks) for place, masks in self._visits if self._level[place] == match]
        exactly = [place for place, masks in like if masks == drafted]
        enough = len(exactly) >= LEAST_STEPS
        return exactly if enough else [place for place, _ in like], len(exactly) > 0

    def _gain(self, state: State, guesses: bool, places: Sequence[int]) -> float:
        """Tokens gained on one half of the texts by the best tree of the other half."""
        gain = 0.0
        for half in (0, 1):
            made, others = self._halves(places, half)
            if not made or not others:
                return 0.0
            everywhere, _ = self._halves([place for place, _ in self._visits], half)
            found = self._best_tree(state[0], guesses, made, everywhere)
            gain += self._value(found, state[0], others)
            gain -= self._value(self._trees[state], state[0], others)
        return gain

    def _halves(self, places: Sequence[int], half: int) -> tuple[list[int], list[int]]:
        """Those in one half of the texts, and the others."""
        inside = [place for place in places if self._text[place] % 2 == half]
        return inside, [place for place in places if self._text[place] % 2 != half]

    def _value(self, tree: Tree, drafted: int, places: Sequence[int]) -> float:
        """Tokens of a step at each of these places and of what follows, less their time's."""
        step, at = self._ends(tree), np.array(places)
        there = np.array(step.next_place[drafted])[at]
        masks = np.array(step.next_masks[drafted])[at]
        inside = there < self._end[at]
        follow = self._worths()[there[inside], masks[inside]].sum()
        return float((there - at).sum() + follow - len(at) * self.speed * step.milliseconds)

    def _ends(self, tree: Tree) -> _Ends:
        if tree not in self._known_ends:
            paths = find_end_nodes(tree, self._mode)
            places, counts = [], []
            for drafted in range(self._num_masks + 1):
                free = self._free[drafted, tree.min_match > 0]
                ended = [cut_to_node(path, paths) for path in free.paths]
                depths = np.array([len(path) for path in ended])[free.number]
                masks = np.array([paths[path] for path in ended])[free.number]
                there = np.minimum(np.arange(len(depths)) + depths + 1, self._end)
                places.append(there.tolist())
                counts.append(np.minimum(masks, self._num_masks).tolist())
            milliseconds = float(self._times[min(tree.num_rows, len(self._times)) - 1])
            self._known_ends[tree] = _Ends(milliseconds, places, counts)
        return self._known_ends[tree]

    def _best_tree(
        self, drafted: int, guesses: bool, places: Sequence[int], everywhere: Sequence[int]
    ) -> Tree:
        """The best tree for steps at these places, exactly.

        Steps everywhere count as a few more, or paths that few steps took would be trusted.
        """
        free = self._free[drafted, guesses]
        weights = np.zeros(len(self._level))
        weights[everywhere] = PRIOR / len(everywhere)
        weights[places] += 1
        weights /= weights.sum()
        shares = free.sums(weights).round(9)
        # depth breaks ties: a parent stands before its children
        order = np.lexsort((free.depths, -shares))[: self._most_paths]
        ordered = [free.prefixes[n] for n in order if shares[n] > 0]
        number = {path: n for n, path in enumerate(ordered)}
        parents = [number[path[:-1]] if path else -1 for path in ordered]
        accepted, to_come = self._by_depth(free, weights, max(map(len, ordered)))
        depths, order = free.depths[order][: len(ordered)], order[: len(ordered)]
        instead = to_come[depths, order]
        instead[0] = 0
        sack = Knapsack(
            parents,
            accepted[depths, order],
            to_come[depths + 1, order],
            instead,
            len(self._times),
        )
        rows = int(np.argmax(sack.values - self.speed * self._times)) + 1
        masks = {ordered[n]: count for n, count in sack.masks(rows).items()}
        return Tree.from_paths(masks, masks).with_ngrams(int(guesses and len(masks) > 1))

    def _by_depth(self, free: _Free, weights: Floats, deepest: int) -> tuple[Floats, Floats]:
        """For each prefix [N], of the steps through it: accepted [D, N], those that have a token at
        a depth in their text; to_come [D + 1, N, M + 1], what the text is worth from there on.
        """
        inside = np.flatnonzero(weights)
        accepted = np.zeros((deepest + 1, len(free.prefixes)))
        to_come = np.zeros((deepest + 2, len(free.prefixes), self._num_masks + 1))
        for depth in range(deepest + 2):
            inside = inside[inside + depth < self._end[inside]]
            values = np.zeros(len(weights))
            values[inside] = weights[inside]
            if depth <= deepest:
                accepted[depth] = free.sums(values)
            for count in range(self._num_masks + 1):
                values[inside] = weights[inside] * self._worths()[inside + depth, count]
                to_come[depth, :, count] = free.sums(values)
        return accepted, to_come

    def table(self) -> TreeTable:
        """Of the states that steps are in; others take the tree of the next that is, with a
        shorter match or fewer masks.
        """
        used = {(drafted, self._level[place]) for place, drafted in self._visits}
        filled: dict[State, Tree] = {}
        num_counts = 1 + max(drafted for drafted, _ in used)
        for d, m in product(range(num_counts), range(len(self._matches))):
            near = [(d, m - 1)] * (m > 0) + [(d - 1, m)] * (d > 0)
            known = (d, m) in used or not near
            filled[d, m] = self._trees[d, m] if known else filled[near[0]]
        numbers = {tree: n for n, tree in enumerate(dict.fromkeys(filled.values()))}
        by_state = tuple(
            tuple(numbers[filled[d, m]] for m in range(len(self._matches)))
            for d in range(num_counts)
        )
        return TreeTable(tuple(numbers), self._matches, by_state)


def _levels(matches: Sequence[int]) -> tuple[int, ...]:
    """The least lengths of match that are a state each, with enough positions."""
    levels = [0]
    for match in range(1, MAX_MATCH + 1):
        ahead = sum(length >= match for length in matches)
        since = sum(length >= levels[-1] for length in matches) - ahead
        if ahead >= LEAST_POSITIONS and (since >= LEAST_POSITIONS or levels == [0]):
            levels.append(match)
    return tuple(levels)
