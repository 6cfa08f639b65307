"""Find the trees by state that together give the most tokens per millisecond.

This is policy iteration (Howard). A state is the number of masks drafted, d = 0 to M, together with
how certain the guess is, in groups of levels; a policy has a tree for each state. A step at place p
of a text takes its state's tree t, costs T(rows of t) milliseconds, emits k tokens and leaves the
drafts of d' masks. A policy determines two quantities:

    g       = tokens / milliseconds, of the whole replay
    V(p, d) = k - g * T(rows of t) + V(p + k, d'), and 0 at the text's end         [tokens]

V is the value of the rest of the text, minus what its time would be worth elsewhere. Given g and V,
the best tree of a state for steps at places p with weights w(p), which sum to 1, maximizes

    sum over its nodes n (accepted(n) + ends(n, c(n)) - instead(n, c(parent of n)))  -  g * T(rows)

    c(n)           masks of node n, 0 to M
    accepted(n)    sum of w(p): tokens that n gives
    ends(n, c)     sum of w(p) V(p + depth of n + 1, c): what follows a step that ends on n
    instead(n, c)  sum of w(p) V(p + depth of n, c): what follows if it ends on n's parent
                   (0 for the root)

Each sum runs over the places whose step passes n in the tree of all paths. A place adds nothing if
its text has ended before p + depth of n for `accepted`, or before the place of V for the others. A
node with c masks has 1 + c rows, so this is a knapsack on the tree of all paths (`knapsack`), which
is solved exactly for every number of rows. A tree is taken if the whole replay becomes faster, and
if trees made from one half of the texts are better on the other half.
"""

from collections.abc import Sequence

import numpy as np

from bita.calibration.acceptance import Acceptance
from bita.calibration.knapsack import Knapsack
from bita.calibration.positions import FreePaths, Positions, State
from bita.calibration.table_replay import Replay, Stepper, Values
from bita.tensors import Float64Array, Int64Array
from bita.tree import Path, Tree
from bita.tree_table import Trees, TreeTable

MIN_STEPS = 40  # steps to judge a state by; with fewer, those with other mask counts are added
PRIOR = 20  # weight, in steps of the state, of all steps elsewhere
MAX_SWEEPS = 2  # passes over all states
MIN_GAIN = 1.001  # ratio of the replay's speeds for a tree to be taken
MIN_NODES = 48  # likeliest nodes of the tree of all paths to consider; more if there are more rows


def best_table(
    acceptance: Acceptance,
    times: Sequence[float],
    num_masks: int,
    mode: str,
    start: Trees,
    uses_text: bool = True,
) -> Trees:
    """Find trees by state that replay faster than `start`; return `start` if there are none.

    Args:
        acceptance: Measured texts.
        times: T(1), T(2), ... in milliseconds, up to the largest tree allowed.
        num_masks: Largest number of masks on a node.
        mode: "exact" has paths along the spine only.
        start: Tree or trees to begin with.
        uses_text: Whether drafts may come from the text so far.
    """
    positions = Positions.of(acceptance, num_masks, mode, uses_text)
    stepper = Stepper(positions, np.maximum.accumulate(times), mode)
    first = replay = stepper.replay_table(TreeTable.of(start))
    for _ in range(MAX_SWEEPS):
        before = replay.speed
        for state in positions.states:
            replay = improve(replay, state)
        if replay.speed < before * MIN_GAIN:
            break
    return replay.to_table() if replay.speed >= first.speed * MIN_GAIN else start


def improve(replay: Replay, state: State) -> Replay:
    """Give one state its best tree if the replay becomes faster.

    The tree guesses if it may, since guesses take the drafts of masks into account too.

    Returns:
        The replay with the tree, or the given one.
    """
    places, has_steps = _judged_places(replay, state)
    if not len(places):
        return replay
    guesses = replay.positions.may_guess(state)
    tree = best_tree(replay, state, guesses, places, replay.places)
    if tree == replay.trees[state] or _gain_on_other_half(replay, state, guesses, places) <= 0:
        return replay
    changed = replay.with_tree(state, tree)
    return changed if changed.speed >= replay.speed * (MIN_GAIN if has_steps else 1) else replay


def best_tree(
    replay: Replay, state: State, guesses: bool, places: Int64Array, everywhere: Int64Array
) -> Tree:
    """Find the best tree of a state for steps at these places.

    Args:
        replay: Replay with the current trees.
        state: State of the tree.
        guesses: Whether the tree's spine takes guesses from the text.
        places: Roots of the state's steps.
        everywhere: Roots of all steps. They count as a few more steps, so that nodes passed by only
            a few steps are not overrated.
    """
    weights = np.zeros(len(replay.positions))
    weights[everywhere] = PRIOR / len(everywhere)
    weights[places] += 1
    weights /= weights.sum()
    step_ms = replay.stepper.step_ms
    free = replay.positions.free_paths[state[0], guesses]
    nodes = _likeliest(free, weights, max(MIN_NODES, len(step_ms)))
    paths = [free.nodes[n] for n in nodes]
    accepted, ends, instead = _weigh(free, nodes, weights, replay.values)
    sack = Knapsack(_parents(paths), accepted, ends, instead, len(step_ms))
    num_rows = int(np.argmax(sack.values - replay.speed * step_ms)) + 1
    masks = {paths[n]: count for n, count in sack.choose_masks(num_rows).items()}
    return Tree.from_paths(masks, masks).with_guesses(int(guesses and len(masks) > 1))


def _judged_places(replay: Replay, state: State) -> tuple[Int64Array, bool]:
    """Return the roots of the steps to judge a state by, and whether any step is in the state.

    If the state has few steps, those with other mask counts are included.
    """
    num_drafted, group = state
    in_group = replay.groups == group
    in_state = in_group & (replay.drafted == num_drafted)
    num_steps = int(in_state.sum())
    return replay.places[in_state if num_steps >= MIN_STEPS else in_group], num_steps > 0


def _gain_on_other_half(replay: Replay, state: State, guesses: bool, places: Int64Array) -> float:
    """Return the tokens gained on each half of the texts by the best tree of the other half."""
    num_drafted, _ = state
    values, present = replay.values, replay.steps[state]
    texts, gain = replay.positions.texts, 0.0
    for half in (0, 1):
        made_from, others = places[texts[places] % 2 == half], places[texts[places] % 2 != half]
        if not len(made_from) or not len(others):
            return 0.0
        everywhere = replay.places[texts[replay.places] % 2 == half]
        tree = best_tree(replay, state, guesses, made_from, everywhere)
        gain += values.sum_steps(replay.stepper.steps(tree), num_drafted, others)
        gain -= values.sum_steps(present, num_drafted, others)
    return gain


def _likeliest(free: FreePaths, weights: Float64Array, max_nodes: int) -> Int64Array:
    """Return the nodes [N] that most weight passes, parents before their children."""
    shares = free.sum_passing(np.arange(len(weights)), weights).round(9)
    order = np.lexsort((free.depths, -shares))[:max_nodes]  # a parent has its child's share or more
    return order[shares[order] > 0]


def _parents(paths: Sequence[Path]) -> list[int]:
    """Return the index [N] of each path's parent among the paths, -1 for the root."""
    index = {path: n for n, path in enumerate(paths)}
    return [index[path[:-1]] if path else -1 for path in paths]


def _weigh(
    free: FreePaths, nodes: Int64Array, weights: Float64Array, values: Values
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Compute accepted [N], ends and instead [N, M + 1] of these nodes (see the module docstring).

    `instead` of the root is 0, since a step ends on it or below it.
    """
    depths = free.depths[nodes]
    accepted = np.zeros(len(nodes))
    ends, instead = np.zeros((2, len(nodes), values.to_come.shape[1]))
    inside = np.flatnonzero(weights)
    for depth in range(int(depths.max()) + 2):
        inside = inside[inside + depth < values.ends[inside]]
        weight, later = weights[inside], values.to_come[inside + depth]
        is_here, is_above = depths == depth, depths == depth - 1
        accepted[is_here] = free.sum_passing(inside, weight)[nodes[is_here]]
        for count in range(later.shape[1]):
            to_come = free.sum_passing(inside, weight * later[:, count])[nodes]
            ends[is_above, count] = to_come[is_above]
            instead[is_here, count] = to_come[is_here]
    instead[0] = 0
    return accepted, ends, instead
