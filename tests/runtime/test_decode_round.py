"""Accepting, drafting and committing: small cases made by hand, and brute force."""

import itertools
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bita.adapter import random_adapter
from bita.identity import ModelIdentity
from bita.runtime.backends.cache import HostCache
from bita.runtime.backends.layout import prefill_layout, tree_layout
from bita.runtime.decoding.drafting import Drafter, Drafts, accept, spine_children
from bita.tree import Tree

TREE = Tree.from_paths([(1,), (1, 1), (2,), (1, 2), (2, 1)], num_masks=2)
ROWS = {path: node for node, path in enumerate(TREE.paths)}


def test_accept_walks_until_tokens_differ() -> None:
    tokens = [10, 11, 12, 21, 13, 22]  # root, 1, 11, 2, 12, 21
    assert [TREE.paths[node] for node in range(6)] == [(), (1,), (1, 1), (2,), (1, 2), (2, 1)]
    chosen = [21, 0, 0, 22, 0, 7]  # the root chooses 21, node (2); that chooses 22, node (2, 1)
    assert accept(TREE.children, tokens, chosen.__getitem__) == ([0, ROWS[2,], ROWS[2, 1]], 7)
    assert accept(spine_children(TREE), tokens, chosen.__getitem__) == ([0], 21)
    chosen = [11, 12, 5, 0, 0, 0]
    assert accept(TREE.children, tokens, chosen.__getitem__) == ([0, 1, 2], 5)
    assert accept(spine_children(TREE), tokens, chosen.__getitem__) == ([0, 1, 2], 5)
    assert accept(TREE.children, tokens, lambda node: 99) == ([0], 99)


@pytest.mark.parametrize("seed", range(30))
def test_accept_equals_the_longest_true_path(seed: int) -> None:
    rng = random.Random(seed)
    tree = Tree.triangle((3, 3, 2))
    tokens = [0, *(node for node in range(1, tree.num_nodes))]  # all distinct
    chosen = [rng.choice(tokens[1:]) for _ in tokens]
    true_paths = []
    for node in range(tree.num_nodes):
        line = [node]
        while line[0] > 0:
            line.insert(0, tree.parents[line[0]])
        if all(chosen[a] == tokens[b] for a, b in itertools.pairwise(line)):
            true_paths.append(line)
    expected = max(true_paths, key=len)
    assert accept(tree.children, tokens, chosen.__getitem__) == (expected, chosen[expected[-1]])


def test_rank_r_of_mask_d_is_drafted_at_depth_d() -> None:
    drafts = Drafts(3, 100)
    drafter = Drafter(TREE)
    first, second = top_ids = np.arange(200).reshape(2, 100)
    drafts.read(top_ids, np.zeros(top_ids.shape, np.float32))
    assert drafts.num_masks == 2
    nodes = np.zeros(TREE.num_nodes, np.int64)
    nodes[0] = 7
    drafter.fill(nodes, drafts)
    # nodes (1,), (1,1), (2,), (1,2), (2,1)
    assert nodes.tolist() == [7, first[0], second[0], first[1], second[1], second[0]]


RESIDENT = """
import sys
from pathlib import Path

import numpy as np

from bita.runtime.backends.cache import lazy_zeros

def anonymous():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])

shape, kind = (16, 8, 16384, 32), np.dtype(np.float32)
before = anonymous()
slab = lazy_zeros(shape, kind) if sys.argv[1] == "lazy" else np.ones(shape, kind)
slab[:, :, :16] = 1
print((anonymous() - before) / slab.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize(("kind", "least", "most"), [("lazy", 0.0, 0.02), ("whole", 0.9, 1.1)])
def test_slots_take_memory_only_once_written(kind: str, least: float, most: float) -> None:
    """It writes 16 of 16384 slots in 128 regions of 2 MB each; huge pages would fill them all."""
    command = [sys.executable, "-c", RESIDENT, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert least <= float(done.stdout) <= most


def test_the_cache_keeps_only_the_path() -> None:
    identity = ModelIdentity("llama", 2, 8, 3, 4, 9, {})
    adapter = random_adapter(identity, 1, prefix_length=5)
    cache = HostCache((4, 3, 40, 4))
    cache.start(adapter)
    np.testing.assert_array_equal(cache.slab[2, :, :5], adapter.prefix_keys[1])
    np.testing.assert_array_equal(cache.slab[3, :, :5], adapter.prefix_values[1])
    cache.length = 7
    cache.slab[:, :, 12:] = np.arange(28)[:, None]  # row r of the step contains r
    cache.commit([0, 1, 4, 9])
    assert cache.length == 11
    assert cache.slab[0, 0, 12:16, 0].tolist() == [0, 1, 4, 9]
    assert cache.slab[3, 2, 12:16, 3].tolist() == [0, 1, 4, 9]
    key, value = cache.layer(1)
    assert np.shares_memory(key, cache.slab)
    assert key.shape == value.shape == (1, 3, 40, 4)


@pytest.mark.parametrize(("num_tokens", "num_masks"), [(1, 0), (1, 2), (5, 0), (5, 3)])
def test_a_prefill_layout_is_causal_with_masks_at_the_end(num_tokens: int, num_masks: int) -> None:
    layout = prefill_layout(num_tokens, num_masks, min_rows=2)
    num_rows = max(2, num_tokens + num_masks)
    assert layout.num_rows == num_rows
    assert layout.offsets.tolist() == list(range(num_rows))
    assert layout.output_rows[0] == num_tokens - 1  # the last token of the text
    assert len(layout.output_rows) == max(2, 1 + num_masks)
    masks = layout.mask_index[num_tokens : num_tokens + num_masks]
    assert masks.tolist() == list(range(num_masks))
    assert (layout.mask_index[:num_tokens] == -1).all()
    np.testing.assert_array_equal(
        layout.sees[: num_tokens + num_masks, : num_tokens + num_masks],
        np.tri(num_tokens + num_masks, dtype=bool),
    )


def test_padding_rows_are_seen_by_no_other_row() -> None:
    layout = tree_layout(Tree.root_only(), min_rows=2)
    assert layout.sees.tolist() == [[True, False], [False, True]]
    assert layout.offsets.tolist() == [0, 1]
    assert layout.mask_index.tolist() == [-1, -1]
    assert tree_layout(TREE, min_rows=2).num_rows == TREE.num_rows
