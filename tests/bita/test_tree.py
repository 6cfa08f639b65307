"""Trees are checked against brute force, cases computed by hand, and broken descriptions."""

import itertools
import json
import random

import numpy as np
import pytest

from bita.errors import TreeError
from bita.tree import Tree


def random_tree(seed: int) -> Tree:
    rng = random.Random(seed)
    paths: list[tuple[int, ...]] = [()]
    for _ in range(rng.randint(0, 14)):
        parent = rng.choice(paths)
        rank = 1 + sum(path[:-1] == parent and path != () for path in paths)
        paths.append((*parent, rank))
    rng.shuffle(paths)
    return Tree.from_paths(paths, {path: rng.randint(0, 3) for path in paths})


def brute_force_sees(tree: Tree, row: int, key: int) -> bool:
    """Apply the rules directly: walk up from the row's node and look for the key."""
    if tree.mask_index[key] >= 0:
        same_group = any(row in group and key in group for group in tree.groups)
        return same_group and tree.mask_index[key] <= tree.mask_index[row]
    node = row
    if tree.mask_index[row] >= 0:
        node = next(n for n, group in enumerate(tree.groups) if row in group)
    while node >= 0:
        if node == key:
            return True
        node = tree.parents[node]
    return False


@pytest.mark.parametrize("seed", range(40))
def test_visibility_and_positions_equal_brute_force(seed: int) -> None:
    tree = random_tree(seed)
    rows = range(tree.num_rows)
    expected = [[brute_force_sees(tree, row, key) for key in rows] for row in rows]
    np.testing.assert_array_equal(tree.sees, expected)
    # Without a prefix, a row's position is the number of other keys that it sees.
    np.testing.assert_array_equal(tree.offsets, tree.sees.sum(axis=1) - 1)
    np.testing.assert_array_equal(tree.sees_prefix, tree.mask_index >= 0)


@pytest.mark.parametrize("seed", range(40))
def test_rows_are_ordered_as_root_spine_others_masks(seed: int) -> None:
    tree = random_tree(seed)
    spine = [(1,) * depth for depth in range(tree.spine_length + 1)]
    assert list(tree.paths[: len(spine)]) == spine
    assert (1,) * (tree.spine_length + 1) not in tree.paths
    assert all(parent < node for node, parent in enumerate(tree.parents))
    assert list(itertools.chain(*tree.groups)) == list(range(tree.num_nodes, tree.num_rows))
    for node, children in enumerate(tree.children):
        assert [tree.ranks[child] for child in children] == sorted(
            tree.ranks[n] for n in range(tree.num_nodes) if tree.parents[n] == node
        )


def test_a_triangle_has_the_given_widths() -> None:
    tree = Tree.triangle((5, 4, 3))
    assert tree.num_nodes == 13
    assert tree.num_rows == 52
    assert tree.spine_length == 3
    assert np.bincount(tree.depths).tolist() == [1, 5, 4, 3]
    # only the spine has children
    assert [len(children) for children in tree.children] == [5, 4, 3] + [0] * 10
    assert str(tree) == "13 nodes (widths [5, 4, 3]), 39 mask rows"


def test_a_chain_equals_a_table_made_by_hand() -> None:
    tree = Tree.chain(1, num_masks=(2, 1))
    assert tree.parents == (-1, 0)
    assert tree.offsets.tolist() == [0, 1, 1, 2, 2]
    assert tree.sees.astype(int).tolist() == [
        [1, 0, 0, 0, 0],  # root
        [1, 1, 0, 0, 0],  # node
        [1, 0, 1, 0, 0],  # mask 0 of the root
        [1, 0, 1, 1, 0],  # mask 1 of the root
        [1, 1, 0, 0, 1],  # mask 0 of the node
    ]


def test_root_only_has_a_single_row() -> None:
    tree = Tree.root_only()
    assert (tree.num_nodes, tree.num_rows, tree.spine_length, tree.max_rank) == (1, 1, 0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_json_round_trip_keeps_the_tree(seed: int) -> None:
    tree = random_tree(seed)
    assert Tree.from_json(tree.to_json()) == tree
    shuffled = json.loads(tree.to_json())
    random.Random(seed).shuffle(shuffled["nodes"])
    assert Tree.from_json(json.dumps(shuffled)) == tree


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a tree"),
        ("[]", "not a tree"),
        ('{"nodes": [{"path": [1.5], "masks": 0}]}', r"nodes\[0\].path is \[1.5\], not a list"),
        ('{"nodes": [{"path": [true], "masks": 0}]}', r"path is \[True\], not a list"),
        ('{"nodes": [{"path": [1]}]}', "masks"),
        ('{"nodes": [{"path": [1, 2], "masks": 0}]}', r"path \[1, 2\] has no parent \[1\]"),
        (
            '{"nodes": [{"path": [0], "masks": 0}]}',
            r"path is \[0\], not a list of whole numbers of 1",
        ),
        ('{"nodes": [{"path": [1], "masks": -1}]}', "masks is -1, not a whole number"),
        ('{"nodes": [{"path": [1], "masks": 1}, {"path": [1], "masks": 2}]}', "occur twice"),
    ],
)
def test_broken_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(TreeError, match=message):
        Tree.from_json(text)


BEYOND = [
    *("[" * 100_000, '{"nodes": ' * 10_000, '{"nodes": {}}', '{"nodes": null}', "null", "9" * 5000),
    '{"nodes": [' + '{"path": [1], "masks": 0},' * 600 + "{}]}",
    '{"nodes": [{"path": [1], "masks": 1000000000}]}',
    '{"nodes": [{"path": [1000000000000], "masks": 0}]}',
    '{"nodes": [{"path": [1e999], "masks": 0}]}',
    '{"nodes": [{"path": [[1]], "masks": 0}]}',
    '{"nodes": [{"path": {"a": 1}, "masks": 0}]}',
    '{"nodes": [{"path": "1", "masks": 0}]}',
    '{"nodes": [{"path": [1], "masks": [1]}]}',
    '{"nodes": [[1], 3, null]}',
    '{"nodes": [], "min_level": 13}',
    '{"nodes": [], "min_level": NaN}',
    '{"nodes": [{"path": [' + "1," * 5000 + '1], "masks": 0}]}',
    '{"nodes": [' + ",".join(f'{{"path": [{n}], "masks": 100}}' for n in range(1, 200)) + "]}",
]


@pytest.mark.parametrize("text", BEYOND, ids=range(len(BEYOND)))
def test_invalid_trees_give_one_short_error(text: str) -> None:
    with pytest.raises(TreeError) as caught:
        Tree.from_json(text)
    assert len(str(caught.value)) < 3000


def test_sizes_are_checked_before_a_tree_is_built() -> None:
    for make in (
        lambda: Tree.chain(10**9),
        lambda: Tree.triangle((10**9, 10**9)),
        lambda: Tree.root_only(10**9),
        lambda: Tree.from_paths([(1,)], 10**6),
    ):
        with pytest.raises(TreeError, match=r"at most (512|8192) are supported"):
            make()


def test_all_faults_are_listed_together() -> None:
    with pytest.raises(TreeError, match=r"(?s)2 faults.*\[0\].*\[2, 1\]"):
        Tree.from_paths([(0,), (2, 1)])


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TreeError, match="3 mask counts for 2 nodes"):
        Tree.chain(1, num_masks=(1, 2, 3))
    with pytest.raises(TreeError, match="positive"):
        Tree.triangle((2, 0))
    with pytest.raises(TreeError, match="at most 512"):
        Tree.from_paths([(rank,) for rank in range(1, 600)])
