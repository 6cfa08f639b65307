"""The static tree of one step: candidate nodes, and the mask tokens after each of them.

A node of depth d >= 1 and rank r holds the r-th best draft of mask d-1 of the group that was
accepted last; the root (node 0) holds the last emitted token. With `min_level` the spine holds
guesses from the text or the table of continuations instead, if they are sure enough. The rows of a
step are, in this order: root, spine (the rank-1 chain), other nodes by depth and path, then the
mask groups in node order. Method: BiTA (arXiv 2401.12522), sections on tree decoding.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.errors import TreeError, raise_faults
from bita.json_values import Fields, parse_json, shown

Path = tuple[int, ...]
BITA_WIDTHS = (5, 4, 3)  # the published triangle for three mask tokens
MAX_LEVEL = 12  # highest confidence in a guess: `bita.runtime.decoding.guess_confidence`
FORM = '{"nodes": [{"path": [1], "masks": 3}, ...]}'  # form of tree.json
MAX_NODES = 512  # far beyond what pays off on any device; guards against a broken file
MAX_ROWS = 8192  # nodes and masks; likewise, since `sees` has the square of it
MAX_RANK = 1 << 20  # likewise; an engine gives 16 drafts per mask


@dataclass(frozen=True)
class Tree:
    """Nodes in row order; made by `root_only`, `chain`, `triangle`, `from_paths` or `from_json`."""

    parents: tuple[int, ...]  # index of each node's parent; -1 for the root
    ranks: tuple[int, ...]  # rank of each node among the drafts of its mask, from 1; 0 for the root
    num_masks: tuple[int, ...]  # number of mask tokens after each node; may be 0
    min_level: int = 0  # minimum level of guesses in the spine, 1 to 12; 0: mask drafts only

    @classmethod
    def root_only(cls, num_masks: int = 0) -> "Tree":
        """Create the tree of plain autoregressive decoding (AR); with masks, that of a prefill."""
        return cls.from_paths([], num_masks)

    @classmethod
    def chain(cls, depth: int, num_masks: int | Sequence[int] | None = None) -> "Tree":
        """Create a chain of the best drafts of `depth` masks, each following the other."""
        _check_count(1 + depth)
        return cls.triangle((1,) * depth, num_masks)

    @classmethod
    def triangle(
        cls, widths: Sequence[int] = BITA_WIDTHS, num_masks: int | Sequence[int] | None = None
    ) -> "Tree":
        """Create BiTA's tree, in which every node is a child of the spine.

        Args:
            widths: Number of nodes at depth 1, 2, ...
            num_masks: Masks of each node: an int for all, or one per node in row order. None uses
                len(widths) for all.

        Raises:
            TreeError: if a width is not positive, or the tree is too large.
        """
        if not widths or any(width < 1 for width in widths):
            raise TreeError(f"widths {shown(tuple(widths))} must be one or more positive numbers")
        _check_count(1 + sum(widths))
        paths = [
            (1,) * depth + (rank,)
            for depth, width in enumerate(widths)
            for rank in range(1, width + 1)
        ]
        return cls.from_paths(paths, len(widths) if num_masks is None else num_masks)

    @classmethod
    def from_paths(
        cls, paths: Iterable[Sequence[int]], num_masks: int | Sequence[int] | Mapping[Path, int] = 0
    ) -> "Tree":
        """Create a tree from the rank paths of its nodes.

        Args:
            paths: Ranks from the root to each node, in any order. The root () may be left out.
            num_masks: Masks of each node: an int for all, one per node in row order, or a mapping
                by path, in which a missing path means 0.

        Raises:
            TreeError: if the paths do not form a tree; it lists every path without a parent, and
                every rank below 1.
        """
        nodes = {tuple(int(rank) for rank in path) for path in paths} | {()}
        _check_count(len(nodes))
        _check_paths(nodes)
        ordered = sorted(nodes, key=_row_order)
        index = {path: node for node, path in enumerate(ordered)}
        return cls(
            parents=tuple(index[path[:-1]] if path else -1 for path in ordered),
            ranks=tuple(path[-1] if path else 0 for path in ordered),
            num_masks=_masks_per_node(ordered, num_masks),
        )

    @classmethod
    def from_json(cls, text: str) -> "Tree":
        """Read what `to_json` writes: {"nodes": [{"path": [1, 1], "masks": 3}, ...]}.

        The object has "min_level" too, unless that is 0.

        Raises:
            TreeError: if the text is not a tree; it lists every fault.
        """
        try:
            return cls.from_data(parse_json(text))
        except ValueError as error:
            raise TreeError(f"not a tree: {error}; expected {FORM}") from error

    @classmethod
    def from_data(cls, data: Any) -> "Tree":
        """Read a tree from parsed JSON. Raises TreeError that lists every fault."""
        if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
            raise TreeError(f"not a tree: {shown(data)}; expected {FORM}")
        values = Fields(data)
        min_level = values.whole("min_level", 0, most=MAX_LEVEL)
        if "min_match" in data:
            values.faults.append("min_match is of an older bita-edge; calibrate the tree again")
        nodes = data["nodes"]
        _check_count(len(nodes))
        masks = {}
        for number, node in enumerate(nodes):
            path, count = _read_node(values, number, node)
            masks[path] = count
        values.check(TreeError, f"not a tree; expected {FORM}")
        if len(masks) != len(nodes):
            raise TreeError(f"{len(nodes) - len(masks)} of {len(nodes)} paths occur twice")
        return cls.from_paths(masks, masks).with_guesses(min_level)

    def with_guesses(self, min_level: int) -> "Tree":
        """Return a tree of the same nodes with this `min_level`.

        Raises:
            TreeError: if `min_level` is not between 0 and 12.
        """
        if not 0 <= min_level <= MAX_LEVEL:
            raise TreeError(f"min_level is {min_level}, not 0 to {MAX_LEVEL}")
        return replace(self, min_level=min_level)

    def to_json(self) -> str:
        """Return the tree as JSON, with one node per line, in row order."""
        lines = [
            json.dumps({"path": list(path), "masks": masks})
            for path, masks in zip(self.paths, self.num_masks, strict=True)
        ]
        ngrams = f',\n"min_level": {self.min_level}' if self.min_level else ""
        return '{"nodes": [\n  ' + ",\n  ".join(lines) + f"\n]{ngrams}}}\n"

    @property
    def is_ar(self) -> bool:
        """Whether the tree drafts nothing, which is plain decoding."""
        return self.num_nodes == 1

    @property
    def num_nodes(self) -> int:
        return len(self.parents)

    @cached_property
    def num_rows(self) -> int:
        """Number of rows of a step, Q: nodes and masks."""
        return self.num_nodes + sum(self.num_masks)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return tuple(depths)

    @property
    def max_masks(self) -> int:
        """Largest number of masks on a node."""
        return max(self.num_masks)

    @property
    def max_depth(self) -> int:
        return max(self.depths)

    @property
    def max_rank(self) -> int:
        """Number of drafts per mask that the tree uses; 0 for a root-only tree."""
        return max(self.ranks)

    @cached_property
    def spine_length(self) -> int:
        """Number of nodes on the rank-1 chain below the root; they are rows 1 to `spine_length`."""
        return sum(all(rank == 1 for rank in path) for path in self.paths) - 1

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """Path of each node: the ranks from the root to the node."""
        paths: list[Path] = []
        for parent, rank in zip(self.parents, self.ranks, strict=True):
            paths.append(() if parent < 0 else (*paths[parent], rank))
        return tuple(paths)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Child nodes of each node, ordered by rank."""
        children: list[list[int]] = [[] for _ in self.parents]
        for node in sorted(range(1, self.num_nodes), key=self.ranks.__getitem__):
            children[self.parents[node]].append(node)
        return tuple(tuple(nodes) for nodes in children)

    @cached_property
    def groups(self) -> tuple[range, ...]:
        """Mask rows of each node, as row indices of the step."""
        ends = list(accumulate(self.num_masks, initial=self.num_nodes))
        return tuple(range(start, end) for start, end in pairwise(ends))

    @cached_property
    def mask_index(self) -> npt.NDArray[np.int64]:
        """Index k of the mask token in each row [Q]; -1 for a node."""
        index = np.full(self.num_rows, -1, np.int64)
        for group in self.groups:
            index[group.start : group.stop] = np.arange(len(group))
        return index

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Position of each row [Q] minus the root's. Mask k of a node is k + 1 after the node."""
        offsets = np.zeros(self.num_rows, np.int64)
        offsets[: self.num_nodes] = self.depths
        for depth, group in zip(self.depths, self.groups, strict=True):
            offsets[group.start : group.stop] = depth + 1 + np.arange(len(group))
        return offsets

    @cached_property
    def sees(self) -> npt.NDArray[np.bool_]:
        """Attention mask [Q, Q]: sees[i, j] is True if row i attends to row j of the same step.

        A node attends to its ancestors and itself. Mask k attends to the rows that its node attends
        to, and to masks 0..k of its own group.
        """
        sees = np.zeros((self.num_rows, self.num_rows), np.bool_)
        for node, (parent, group) in enumerate(zip(self.parents, self.groups, strict=True)):
            if parent >= 0:
                sees[node] = sees[parent]
            sees[node, node] = True
            for row in group:
                sees[row] = sees[node]
                sees[row, group.start : row + 1] = True
        return sees

    @cached_property
    def sees_prefix(self) -> npt.NDArray[np.bool_]:
        """Whether each row [Q] attends to the adapter's prefix; only mask rows do."""
        return self.mask_index >= 0

    def misfits(self, num_masks: int, num_ranks: int, num_slots: int) -> list[str]:
        """Return why an engine cannot run this tree; empty if it can.

        Args:
            num_masks: Number of mask tokens of the adapter, M.
            num_ranks: Drafts per mask that the engine returns.
            num_slots: Cache slots, without those of the prefix.
        """
        faults = []
        if self.max_masks > num_masks:
            faults.append(f"{self.max_masks} masks on a node; the adapter has {num_masks}")
        if self.max_rank > num_ranks:
            faults.append(f"rank {self.max_rank} is used; the engine gives {num_ranks}")
        if self.num_rows >= num_slots:
            faults.append(f"{self.num_rows} rows; the cache has room for {num_slots}")
        return faults

    def __str__(self) -> str:
        if self.num_rows == 1:
            return "AR"
        if self.num_nodes == 1:
            return f"the root, {sum(self.num_masks)} mask rows"
        widths = np.bincount(self.depths)[1:].tolist()
        ngrams = f", guesses from level {self.min_level} on" if self.min_level else ""
        return f"{self.num_nodes} nodes (widths {widths}), {sum(self.num_masks)} mask rows{ngrams}"


def _row_order(path: Path) -> tuple[bool, int, Path]:
    off_spine = any(rank != 1 for rank in path)
    return off_spine, len(path), path


def _check_count(num_nodes: int) -> None:
    if num_nodes > MAX_NODES:
        raise TreeError(f"tree has {num_nodes} nodes; at most {MAX_NODES} are supported")


def _check_paths(nodes: set[Path]) -> None:
    ordered = sorted(nodes)
    faults = [f"path {list(path)} has a rank below 1" for path in ordered if min((1, *path)) < 1]
    faults += [
        f"path {list(path)} has no parent {list(path[:-1])}"
        for path in ordered
        if path and path[:-1] not in nodes
    ]
    raise_faults(TreeError, "tree", faults)


def _masks_per_node(
    paths: Sequence[Path], num_masks: int | Sequence[int] | Mapping[Path, int]
) -> tuple[int, ...]:
    if isinstance(num_masks, int):
        counts = [num_masks] * len(paths)
    elif isinstance(num_masks, Mapping):
        counts = [num_masks.get(path, 0) for path in paths]
    else:
        counts = list(num_masks)
    if len(counts) != len(paths):
        raise TreeError(f"{len(counts)} mask counts for {len(paths)} nodes; give one per node")
    if any(count < 0 for count in counts):
        raise TreeError(f"mask counts {shown(counts)} must not be negative")
    if len(counts) + sum(counts) > MAX_ROWS:
        raise TreeError(
            f"tree has {len(counts) + sum(counts)} rows; at most {MAX_ROWS} are supported"
        )
    return tuple(counts)


def _read_node(values: Fields, number: int, node: Any) -> tuple[Path, int]:
    """Read path and mask count of an object in "nodes"; add faults to those of the tree."""
    if not isinstance(node, dict):
        values.faults.append(f"nodes[{number}] is {shown(node)}, not an object")
        return (), 0
    fields = Fields(node, f"nodes[{number}].")
    fields.faults = values.faults
    path = fields.wholes("path", least=1, most=MAX_RANK)
    if len(path) > MAX_NODES:
        fields.faults.append(
            f"nodes[{number}].path has {len(path)} ranks; at most {MAX_NODES} are supported"
        )
    return path, fields.whole("masks", most=MAX_ROWS)
